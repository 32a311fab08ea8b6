"""Measures how long this process waits for exchanges that backward does not hide.

DistributedDataParallel waits for its all-reduces at the end of backward, in a callback of autograd. Callbacks run in
their order, and one that is queued when backward begins runs before it. So two callbacks around it measure the wait,
and DistributedDataParallel stays as it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowland.bench.overhead import loss_fn

# The executor restores the Python state that a loss function can reach, and it reaches no value of a ContextVar.
_waits: ContextVar[tuple[float, ...]] = ContextVar("waits", default=())


def taken() -> list[float]:
    """Seconds of every wait since the last call, in backward of :func:`watched` and in :func:`all_reduces_timed`."""
    waits = list(_waits.get())
    _waits.set(())
    return waits


def watched(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross entropy, whose backward notes the time of its last callbacks for :func:`taken`.

    Args:
        model: The model in DistributedDataParallel, on the CPU: there autograd calls back in the thread of the caller.
        batch: Inputs and classes.
    """
    loss = loss_fn(model, batch)
    loss.register_hook(_backward_begins)  # type: ignore[no-untyped-call]
    return loss


def _backward_begins(grad: Tensor) -> None:
    _queue(_gradients_ready)


def _gradients_ready() -> None:
    """Runs when all gradients are computed, before DistributedDataParallel waits."""
    begun = time.perf_counter()
    _queue(lambda: _note(begun))  # queued last, so it runs after the wait


def _queue(callback: Any) -> None:
    torch.autograd.Variable._execution_engine.queue_callback(callback)


def _note(begun: float) -> None:
    _waits.set((*_waits.get(), time.perf_counter() - begun))


@contextmanager
def all_reduces_timed() -> Iterator[None]:
    """Note the time of every blocking all-reduce for :func:`taken`, such as those of the engine's few numbers."""
    original = dist.all_reduce

    def timed(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            _note(begun)

    dist.all_reduce = timed
    try:
        yield
    finally:
        dist.all_reduce = original
