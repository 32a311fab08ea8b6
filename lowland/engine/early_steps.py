"""Refuses optimizers that step before a step of the engine is complete: inside backward, or between two passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lowland.core.errors import UsageError
from lowland.executors import modes

if TYPE_CHECKING:
    from lowland.engine import Engine

_ACTIVE: list[Engine] = []
_registered = False


def begin(engine: Engine) -> None:
    """Begin a step of the engine; until its end, no optimizer may step the engine's parameters."""
    global _registered
    if not _registered:
        _registered = True
        register_optimizer_step_pre_hook(_check)
        register_optimizer_step_post_hook(_check_state)
    _ACTIVE.append(engine)


def end(engine: Engine) -> None:
    """End the step of the engine."""
    _ACTIVE.remove(engine)


@contextmanager
def planning(engine: Engine) -> Iterator[None]:
    """Allow optimizers to step while the plan computes; :class:`lowland.engine.watch.Watch` checks writes of plans."""
    end(engine)
    try:
        yield
    finally:
        begin(engine)


def _check(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Refuse a step of an optimizer inside a step of an engine; torch calls this hook before every optimizer step.

    Raises:
        UsageError: The optimizer has parameters of an engine whose step is not complete. It has not stepped.
    """
    for engine in _ACTIVE:
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        blocked = [n for n, p in zip(engine.names, engine.params, strict=True) if id(p) in stepped]
        if blocked:
            raise UsageError(
                f"weights must stay where they are while backward runs, but {blocked[0]} would be stepped by a "
                f"{type(optimizer).__name__} before the step of the engine is complete, as by an optimizer fused into "
                "backward (register_post_accumulate_grad_hook) or called between passes; step the optimizer after "
                "engine.backward(batch)"
            )


def _check_state(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Refuse an optimizer that steps parameters outside the engine in a pass that must leave no trace.

    The parameters are restored after the pass, but the optimizer's moments and step counts are not.

    Raises:
        UsageError: The optimizer keeps state.
    """
    if modes.displaced() and any(entry is not None for state in optimizer.state.values() for entry in state.values()):
        raise UsageError(
            f"state must be written once in a step, but a {type(optimizer).__name__} with state of its own steps "
            "inside forward or loss_fn, which run in every pass; step it after engine.backward(batch), or inside of "
            "`if not lowland.displaced():`"
        )
