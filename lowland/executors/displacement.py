"""Weights moved for one pass, and brought back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.utils import parametrize

from lowland.core import vec
from lowland.core.errors import UsageError
from lowland.core.vec import Vec


def check_displacement(params: Vec, at: Vec, *, each: bool = False) -> None:
    """Refuse a displacement that does not fit the parameters, or was spent.

    Args:
        params: The parameters.
        at: The displacement.
        each: Look at every tensor, which costs a microsecond for each; for some of the steps.

    Raises:
        UsageError: It has another number of tensors, or one of another shape or dtype, which would be broadcast or
            rounded.
    """
    if len(at) != len(params):
        raise UsageError(
            f"a displacement must have one tensor for each of {len(params)} parameters, but has {len(at)}; "
            "a Probe is asked once, so yield a new Probe"
        )
    for i, (p, t) in enumerate(zip(params, at, strict=True) if each else ()):
        if t.shape != p.shape or t.dtype != p.dtype:
            raise UsageError(
                f"a displacement must have tensors like the parameters, but that for parameter {i} has shape "
                f"{tuple(t.shape)} and {t.dtype}, and the parameter {tuple(p.shape)} and {p.dtype}; compute it with "
                "lowland.vec, which keeps shapes"
            )


@torch.no_grad()
def put_back(params: Vec, saved: Vec) -> None:
    """Overwrite the weights with a saved copy, bit for bit, at the same addresses."""
    vec.copy_(params, saved)


@contextmanager
def displaced(params: Vec, at: Vec, *, each: bool = False) -> Iterator[None]:
    """Move the weights by ``at`` and bring back a saved copy, bit for bit, whatever is raised inside.

    The list ``at`` is emptied once the weights have moved. Subtracting instead of copying would leave rounding
    behind, different on ranks that moved differently. With ``each``, every tensor is looked at before.
    """
    check_displacement(params, at, each=each)
    with torch.no_grad():
        saved = vec.clone(params)
        try:
            vec.add_(params, at)
            at.clear()
            torch.clear_autocast_cache()
            with torch.enable_grad():
                yield
        finally:
            put_back(params, saved)
            # Autocast keeps low-precision copies of weights and would not notice that they moved.
            torch.clear_autocast_cache()


def forget_derived() -> None:
    """Drop what ``parametrize.cached()`` keeps: weights that were derived from weights elsewhere, and their graph."""
    if parametrize._cache_enabled:
        parametrize._cache = {}
