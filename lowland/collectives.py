"""Vectors averaged over ranks: one collective for all tensors of a kind, never one per tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lowland import shards
from lowland.vec import Vec


def average_(v: Vec, groups: Sequence[dist.ProcessGroup]) -> int:
    """Replace ``v`` by its mean over the ranks of the groups, in place: one all-reduce for each group and dtype.

    Args:
        v: The vector; of a DTensor the local shard is averaged.
        groups: Averaged over one after the other.

    Returns:
        The bytes that this rank gave into the collectives.
    """
    here, sent = shards.local(v), 0
    for kind in sorted({t.dtype for t in here}, key=str):
        mine = [t for t in here if t.dtype == kind]
        flat = torch.cat([t.reshape(-1) for t in mine])
        for group in groups:
            dist.all_reduce(flat, group=group)
            flat /= dist.get_world_size(group)
            sent += flat.numel() * flat.element_size()
        torch._foreach_copy_(mine, _parts(flat, mine))
    return sent


def total(x: Tensor, groups: Sequence[dist.ProcessGroup]) -> Tensor:
    """The sum of a small tensor over the ranks of all groups."""
    x = x.clone()
    for group in groups:
        dist.all_reduce(x, group=group)
    return x


def _parts(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of ``flat`` in the shapes of ``like``."""
    parts = torch.split(flat, [t.numel() for t in like])
    return [part.view(t.shape) for part, t in zip(parts, like, strict=True)]
