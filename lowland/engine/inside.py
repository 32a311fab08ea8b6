"""The torch optimizer inside a wrapper of a framework or of one's own."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from lowland.core.errors import ParameterError, UsageError

# Wrappers that forward calls to an inner optimizer, and the attribute of that optimizer. They are recognized by name,
# because some imitate the class of the inner optimizer. An optimizer with its own step, such as Lookahead, is no
# wrapper.
INSIDE = {
    "AcceleratedOptimizer": "optimizer",  # accelerate
    "LightningOptimizer": "_optimizer",
    "_FabricOptimizer": "_optimizer",
    "OptimWrapper": "opt",  # fastai
}


def unwrap(optimizer: Any) -> Optimizer:
    """The torch optimizer inside a wrapper of accelerate, Lightning, Fabric or fastai, or in an ``.optimizer``.

    Raises:
        ParameterError: There is no torch optimizer.
    """
    seen: list[Any] = []
    while (place := _inside(optimizer)) is not None or not isinstance(optimizer, Optimizer):
        seen.append(optimizer)
        try:
            inner = getattr(optimizer, place or "optimizer", None)
        except Exception:  # a wrapper's __getattr__ can raise any exception
            inner = None
        if inner is None or any(inner is other for other in seen):
            raise ParameterError(
                f"optimizer must be a torch.optim.Optimizer, but is a {type(optimizer).__name__}; "
                "pass the optimizer that holds the model's parameters"
            )
        optimizer = inner
    return optimizer


def own_steps(optimizer: Any) -> list[str]:
    """The classes of wrappers around one or several optimizers whose ``step`` may do more than that of those inside."""
    names = []
    for inner in optimizer if isinstance(optimizer, list | tuple) else [optimizer]:
        while (place := _inside(inner)) is not None or not isinstance(inner, Optimizer):
            if place is None and callable(getattr(type(inner), "step", None)):
                names.append(type(inner).__name__)
            inner = getattr(inner, place or "optimizer")
    return names


def check_step(optimizers: Sequence[Optimizer], wrappers: Sequence[str]) -> None:
    """Refuse a lookahead where the step of an optimizer does more than the optimizer itself.

    Args:
        optimizers: The optimizers.
        wrappers: The classes around them, from :func:`own_steps`, which may set the learning rate in their step.

    Raises:
        UsageError: There is such a class, or an optimizer has a hook of its own, which may clip or change weights.
    """
    if wrappers:
        raise UsageError(
            f"lookahead computes the step of the torch optimizer, but {wrappers[0]}, which is around it, has a step of "
            "its own, which may do more, such as set the learning rate; set this before engine.backward(batch) and "
            'pass the torch optimizer itself to the Engine, or use SAMPa(lookahead="raw")'
        )
    for optimizer in optimizers:
        for kind in ("pre", "post"):
            hooks = getattr(optimizer, f"_optimizer_step_{kind}_hooks", None) or {}
            if any(map(_is_own, hooks.values())):
                raise UsageError(
                    f"lookahead computes the step of the optimizer itself, but {type(optimizer).__name__} has a step "
                    f"{kind}-hook, which may do more, such as clip gradients; do this in the training loop, before or "
                    'after optimizer.step(), or use SAMPa(lookahead="raw")'
                )


def _is_own(hook: Any) -> bool:
    """Whether a hook is the user's: neither torch's, such as a profiler's, nor lowland's."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return str(module).partition(".")[0] not in ("torch", "lowland")


def _inside(optimizer: Any) -> str | None:
    return next((INSIDE[c.__name__] for c in type(optimizer).__mro__ if c.__name__ in INSIDE), None)
