"""Vectors as one flat tensor, as pieces, and as bits: how arithmetic on many tensors becomes few operations."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import Tensor

from lowland.core import shards
from lowland.core.at_hand import at_hand

SMALL = 8192  # average entries per tensor, below which one flat copy is cheaper than one call per tensor
PIECE = 1 << 22  # entries of temporary memory at most, on a device
JOINABLE = (torch.float32, torch.float64)  # in other precisions, sums over many entries overflow
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of an entry

_DTYPE = operator.attrgetter("dtype")


def many_small(v: list[Tensor]) -> bool:
    """Whether one operation on a flat copy is faster than one per tensor, which costs a microsecond or a launch."""
    if len(v) <= 16 or not shards.ordinary(v) or v[0].dtype not in JOINABLE:
        return False
    if not at_hand(v[0]) and not all(map(Tensor.is_contiguous, v)):  # views of a flat copy have another memory format
        return False
    return sum(map(torch.numel, v)) < SMALL * len(v) and len(set(map(_DTYPE, v))) == 1


def alone(v: list[Tensor]) -> bool:
    """Whether a vector on a device is a single tensor, as inside :func:`together`, whose entries are summed at once."""
    return len(v) == 1 and type(v[0]) in shards.ORDINARY and v[0].dtype in JOINABLE and not at_hand(v[0])


def joined(v: list[Tensor]) -> Tensor:
    """The entries of all tensors, shape ``(n,)``; a copy unless there is one tensor."""
    if len(v) == 1:
        return v[0].reshape(-1)
    flat: Tensor = torch._utils._flatten_dense_tensors(v)  # type: ignore[no-untyped-call]
    return flat


def apart(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Views into a flat tensor in the shapes of ``like``."""
    return list(torch._utils._unflatten_dense_tensors(flat, like))  # type: ignore[no-untyped-call]


def pieces(*vectors: list[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """Cut vectors between the same tensors into pieces of at most ``PIECE`` entries, or of one tensor."""
    start = size = 0
    for i, t in enumerate(vectors[0]):
        if size and size + t.numel() > PIECE:
            yield tuple(v[start:i] for v in vectors)
            start, size = i, 0
        size += t.numel()
    yield tuple(v[start:] for v in vectors)


def bits(v: list[Tensor]) -> list[Tensor]:
    """The bits of all entries as integers, which share their memory: times 0 they are those of 0, also for NaN."""
    return [t.view(_BITS[t.element_size()]) for t in shards.local(v)]


def one_or_zero(condition: Tensor, v: list[Tensor]) -> Tensor:
    """A condition as an integer to multiply bits by."""
    return condition.to(_BITS[v[0].element_size()])


def spread(factors: Tensor, v: list[Tensor]) -> Tensor:
    """A number per tensor, repeated for all entries of its tensor.

    Args:
        factors: The numbers, shape ``(len(v),)``.
        v: The tensors, on the device of the factors.

    Returns:
        A tensor of as many entries as all tensors of ``v`` together.
    """
    return torch.cat([f.expand(t.numel()) for f, t in zip(factors.unbind(), v, strict=True)])
