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

# The seconds so far. The executor restores the Python state that a loss function can reach, and it reaches no value of
# a ContextVar.
_waited = ContextVar("waited", default=0.0)


def waited() -> float:
    """Seconds that this process has waited so far: in backward of :func:`watched`, and in :func:`all_reduces_timed`."""
    return _waited.get()


def watched(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross entropy, whose backward adds the time of its last callbacks to :func:`waited`.

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
    _queue(lambda: _add(begun))  # queued last, so it runs after the wait


def _queue(callback: Any) -> None:
    torch.autograd.Variable._execution_engine.queue_callback(callback)


def _add(begun: float) -> None:
    _waited.set(_waited.get() + time.perf_counter() - begun)


@contextmanager
def all_reduces_timed() -> Iterator[None]:
    """Add the time of every blocking all-reduce of this process to :func:`waited`: of the engine's few numbers."""
    original = dist.all_reduce

    def timed(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            _add(begun)

    dist.all_reduce = timed
    try:
        yield
    finally:
        dist.all_reduce = original
