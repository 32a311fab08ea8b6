"""Contexts with temporary changes: an object's function, a model's mode, DDP's averaging."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def standing_in(owner: Any, name: str, function: Any) -> Iterator[None]:
    """Replace ``owner.name`` by another function in this context; restore it at the end, also after an exception."""
    original = vars(owner).get(name)
    object.__setattr__(owner, name, function)
    try:
        yield
    finally:
        if original is None:
            object.__delattr__(owner, name)
        else:
            object.__setattr__(owner, name, original)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode in this context; restore every module's mode at the end."""
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for m, training in modes.items():
            m.training = training


@contextmanager
def synchronized(ddps: Iterable[DistributedDataParallel]) -> Iterator[None]:
    """Let DDP average in this context, also inside ``no_sync``, where the engine would refuse a step."""
    wrappers = list(ddps)
    settings = [ddp.require_backward_grad_sync for ddp in wrappers]
    try:
        for ddp in wrappers:
            ddp.require_backward_grad_sync = True
        yield
    finally:
        for ddp, sync in zip(wrappers, settings, strict=True):
            ddp.require_backward_grad_sync = sync
