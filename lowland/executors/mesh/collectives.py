"""Vectors averaged over ranks: one collective for all tensors of a kind, never one per tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lowland.core import shards
from lowland.core.errors import RankError
from lowland.core.lagged import read
from lowland.core.vec import Vec


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


def first(x: Tensor, groups: Sequence[dist.ProcessGroup]) -> Tensor:
    """A small tensor as the first rank of all groups has it."""
    x = x.clone() if groups else x
    for group in groups:
        dist.broadcast(x, dist.get_global_rank(group, 0), group=group)
    return x


def agree(what: Mapping[str, Any], groups: Sequence[dist.ProcessGroup]) -> None:
    """Refuse to go on if ranks differ, before a collective of one of them waits for what never comes.

    Args:
        what: Named values that must be equal on all ranks; compared and shown by ``repr``, without addresses.
        groups: The ranks.

    Raises:
        RankError: They differ; on all ranks.
    """
    for group in groups:
        # Without addresses, as of a function: they are others in every process.
        mine = {name: re.sub(r" at 0x[0-9a-f]+", "", repr(value)) for name, value in what.items()}
        everyone: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(everyone, mine, group=group)
        ranks = dist.get_process_group_ranks(group)
        for rank, theirs in zip(ranks, everyone, strict=True):
            for name in {**everyone[0], **theirs}:
                there, first = theirs.get(name, "nothing"), everyone[0].get(name, "nothing")
                if there != first:
                    raise RankError(
                        f"{name} must be the same on all ranks, but is {_short(there, first)} on rank {rank} and "
                        f"{_short(first, there)} on rank {ranks[0]}; start all ranks with the same command and data"
                    )


def same_bits(tensors: Mapping[str, Tensor], group: dist.ProcessGroup) -> None:
    """Refuse to go on if a tensor has other bits on another rank. It costs one pass over them, and waits for it.

    Args:
        tensors: By name; of a DTensor, the local shard is compared.
        group: Ranks that must hold the same.

    Raises:
        RankError: A tensor differs; on all ranks.
    """
    marks = torch.stack([_mark(t) for t in shards.local(list(tensors.values()))])  # (number of tensors,)
    everyone = [torch.empty_like(marks) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, marks, group=group)
    ranks = dist.get_process_group_ranks(group)
    for rank, theirs in zip(ranks, everyone, strict=True):
        for name, differs in zip(tensors, read(theirs != everyone[0]), strict=True):
            if differs:
                raise RankError(
                    f"replicas must be equal, but {name} has other bits on rank {rank} than on rank {ranks[0]}; "
                    "initialize them with the same seed, and give all groups the same batches"
                )


@torch.no_grad()
def _mark(t: Tensor) -> Tensor:
    """A sum over the bits, shape ``()``; where neighbors swap it changes, too."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = t.detach().contiguous().reshape(-1).view(kinds[t.element_size()]).long()
    return (bits * (torch.arange(len(bits), device=bits.device) % 8191 + 1)).sum()


def mark(flags: Sequence[bool]) -> int:
    """A number by which ranks compare flags; a double holds it exactly, also as a sum over 4,096 ranks."""
    return hash(tuple(flags)) % (1 << 40)


def _short(text: str, other: str) -> str:
    """A text from where it begins to differ, if it is long."""
    same = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    start = max(0, same - 20) if len(text) > 80 else 0
    return ("…" if start else "") + text[start : start + 80] + ("…" if len(text) > start + 80 else "")


def _parts(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of ``flat`` in the shapes of ``like``."""
    parts = torch.split(flat, [t.numel() for t in like])
    return [part.view(t.shape) for part, t in zip(parts, like, strict=True)]
