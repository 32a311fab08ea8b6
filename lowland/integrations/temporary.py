"""What is otherwise for a while: a function of an object, the mode of a model, whether DDP averages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def standing_in(owner: Any, name: str, function: Any) -> Iterator[None]:
    """Let ``owner.name`` be another function; afterwards the object has what it had, whatever is raised inside."""
    held = vars(owner).get(name)
    object.__setattr__(owner, name, function)
    try:
        yield
    finally:
        if held is None:
            object.__delattr__(owner, name)
        else:
            object.__setattr__(owner, name, held)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model without dropout and without new statistics; afterwards every module is as it was."""
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for m, training in modes.items():
            m.training = training


@contextmanager
def synchronized(ddps: Iterable[DistributedDataParallel]) -> Iterator[None]:
    """Let wrappers average, also inside their ``no_sync``, which would keep an engine from averaging."""
    wrappers = list(ddps)
    before = [ddp.require_backward_grad_sync for ddp in wrappers]
    try:
        for ddp in wrappers:
            ddp.require_backward_grad_sync = True
        yield
    finally:
        for ddp, sync in zip(wrappers, before, strict=True):
            ddp.require_backward_grad_sync = sync
