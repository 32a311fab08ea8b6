"""Moves the weights for one pass and restores them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from lowland.core import precision, shards, vec
from lowland.core.errors import UsageError
from lowland.core.vec import Vec

# The displaced parameters with their saved values, outermost first. Global, because backward may recompute a forward in
# another thread.
_moved: list[tuple[Vec, Vec]] = []


def check_displacement(params: Vec, at: Vec, *, each: bool = False, noise: int | None = None) -> None:
    """Refuse a displacement that does not fit the parameters or has already been used.

    Args:
        params: The parameters.
        at: The displacement; its list is empty after its first use.
        each: Also compare shapes and dtypes, which costs a microsecond per tensor, so only some steps do it.
        noise: See :func:`move`.

    Raises:
        UsageError: The displacement has another number of tensors, or a tensor of another shape or dtype, which would
            be broadcast or rounded.
    """
    if len(at) != len(params):
        raise UsageError(
            f"a displacement must have one tensor for each of {len(params)} parameters, but has {len(at)}; "
            "a Probe is asked once, so yield a new Probe"
        )
    if each and noise is None and precision.is_low(params):
        raise UsageError(
            "weights in bf16 or fp16 are displaced by an engine only, which draws the numbers of stochastic rounding; "
            "convert the model first: model.float()"
        )
    for i, (p, t) in enumerate(zip(params, at, strict=True) if each else ()):
        dtype = precision.of_vectors(p.dtype)
        if t.shape != p.shape or t.dtype != dtype:
            raise UsageError(
                f"a displacement must have tensors like the parameters, but that for parameter {i} has shape "
                f"{tuple(t.shape)} and {t.dtype}, and must have {tuple(p.shape)} and {dtype}; compute it with "
                "lowland.vec, which keeps shapes"
            )


@torch.no_grad()
def move(params: Vec, at: Vec, noise: int | None = None) -> None:
    """Add a displacement to weights in place.

    Args:
        params: The weights. Those in bf16 or fp16 are rounded stochastically, because their resolution is coarser than
            the displacement; :mod:`lowland.core.precision` says how.
        at: The displacement.
        noise: The seed of the rounding. Ranks that hold the same shard draw the same numbers, because copies of a
            weight must stay equal. None: no weights are in bf16 or fp16.
    """
    if noise is None:
        vec.add_(params, at)
        return
    generator = torch.Generator(params[0].device).manual_seed(noise)
    numbers = None if shards.ordinary(params) else list(map(shards.number, params))
    for i, (p, e) in enumerate(zip(shards.local(params), shards.local(at), strict=True)):
        if p.dtype in precision.DROPPED:
            if numbers is not None:  # a seed for each shard, since shards have different sizes on different ranks
                # torch's generator on a CPU reads 32 bits of a seed
                generator.manual_seed((noise + 0x9E3779B1 * (i + 1) + 0x85EBCA6B * numbers[i]) % 2**32)
            p.copy_(precision.rounded(p.to(torch.float32).add_(e), p.dtype, generator))
        else:
            p.add_(e)


@torch.no_grad()
def put_back(params: Vec, saved: Vec) -> None:
    """Overwrite the weights with a saved copy, bit for bit, at the same addresses."""
    vec.copy_(params, saved)


@contextmanager
def displaced(params: Vec, at: Vec, *, each: bool = False, noise: int | None = None) -> Iterator[None]:
    """Add ``at`` to the weights, and restore the weights bit for bit from a copy at the end, also after an exception.

    Subtracting ``at`` again would leave rounding errors, which differ between ranks with different displacements.

    Args:
        params: The parameters.
        at: The displacement; the list is emptied after the weights have moved, so that its memory is freed.
        each: Compare shapes and dtypes of all tensors before; see :func:`check_displacement`.
        noise: See :func:`move`.
    """
    check_displacement(params, at, each=each, noise=noise)
    with torch.no_grad():
        saved = vec.clone(params)
        moved = (params, saved)
        _moved.append(moved)
        try:
            move(params, at, noise)
            at.clear()
            torch.clear_autocast_cache()
            with torch.enable_grad():
                yield
        finally:
            # Passes of two engines may end in any order. Tuples of tensors have no truth value, so not by ``remove``.
            _moved[:] = [other for other in _moved if other is not moved]
            put_back(params, saved)
            # Autocast caches low-precision copies of the weights and does not notice that the weights moved.
            torch.clear_autocast_cache()


def undisplaced(p: Tensor) -> Tensor:
    """The values of a parameter without the displacement of the running pass; outside of a displaced pass, ``p``.

    For a layer that computes something from its weights that must not see the displacement, such as a quantizer.

    Args:
        p: The parameter itself, as the executor displaces it.

    Raises:
        UsageError: A pass is displaced, and ``p`` is trainable and not among its parameters.
    """
    for params, saved in _moved:
        for moved, value in zip(params, saved, strict=True):
            if moved is p:
                return value
    if _moved and p.requires_grad:
        raise UsageError(
            "a layer must see the parameters that a pass displaces, but sees other tensors, as under fully_shard; "
            "train on one device or with DDP, or let the layer see the displaced weights"
        )
    return p


def forget_derived() -> None:
    """Empty the cache of ``parametrize.cached()``, whose tensors were computed from weights at another point."""
    if parametrize._cache_enabled:
        parametrize._cache = {}
