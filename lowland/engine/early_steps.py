"""Optimizers that step before a step of the engine is complete: inside backward, or between two passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lowland.core.errors import UsageError

if TYPE_CHECKING:
    from lowland.engine import Engine

_UNDER_WAY: list[Engine] = []
_watching = False


def begin(engine: Engine) -> None:
    """A step of the engine begins; until its end, optimizers must leave its parameters alone."""
    global _watching
    if not _watching:
        _watching = True
        register_optimizer_step_pre_hook(_check)
    _UNDER_WAY.append(engine)


def end(engine: Engine) -> None:
    """The step is over."""
    _UNDER_WAY.remove(engine)


@contextmanager
def planning(engine: Engine) -> Iterator[None]:
    """The plan computes: what it does to weights is for :class:`lowland.engine.watch.Watch` to see."""
    end(engine)
    try:
        yield
    finally:
        begin(engine)


def _check(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Torch calls it before every step of any optimizer.

    Raises:
        UsageError: It would move weights in the middle of an engine's step; it has not.
    """
    for engine in _UNDER_WAY:
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        found = [n for n, p in zip(engine.names, engine.params, strict=True) if id(p) in stepped]
        if found:
            raise UsageError(
                f"weights must stay where they are while backward runs, but {found[0]} would be stepped by a "
                f"{type(optimizer).__name__} before the step of the engine is complete, as by an optimizer fused into "
                "backward (register_post_accumulate_grad_hook) or called between passes; step the optimizer after "
                "engine.backward(batch)"
            )
