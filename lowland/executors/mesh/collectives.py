"""Vectors averaged over ranks: one collective for all tensors of a kind, never one per tensor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lowland.core import shards
from lowland.core.errors import RankError
from lowland.core.lagged import read
from lowland.core.vec import Vec

# What the repr of a value has from its process: the address of a function, and the device of a tensor.
_OWN = re.compile(r" at 0x[0-9a-f]+|, device='[a-z]+:\d+'")

_PERIOD = 8191  # after so many entries, the weights in a checksum repeat
_CHUNK = 512 * _PERIOD  # entries of temporary memory, about 2^22


def _current(device: torch.device | None) -> AbstractContextManager[Any]:
    """Make a device the current one for a while, where devices of its kind have a current one."""
    kind: Any = getattr(torch, device.type, None) if device is not None else None  # torch.cuda, torch.xpu
    return kind.device(device) if isinstance(getattr(kind, "device", None), type) else nullcontext()


def average_(v: Vec, groups: Sequence[dist.ProcessGroup]) -> int:
    """Average ``v`` over the ranks of the groups in place, with one all-reduce per group and dtype.

    Args:
        v: The vector. For a DTensor, the local shard is averaged.
        groups: The process groups, averaged over one after the other.

    Returns:
        The number of bytes that this rank sent.
    """
    shards_here, sent = shards.local(v), 0
    for dtype in sorted({t.dtype for t in shards_here}, key=str):
        same_dtype = [t for t in shards_here if t.dtype == dtype]
        flat = torch.cat([t.reshape(-1) for t in same_dtype])
        for group in groups:
            dist.all_reduce(flat, group=group)
            flat /= dist.get_world_size(group)
            sent += flat.numel() * flat.element_size()
        torch._foreach_copy_(same_dtype, _parts(flat, same_dtype))
    return sent


def total(x: Tensor, groups: Sequence[dist.ProcessGroup]) -> Tensor:
    """Sum a small tensor over the ranks of all groups."""
    x = x.clone()
    for group in groups:
        dist.all_reduce(x, group=group)
    return x


def first(x: Tensor, groups: Sequence[dist.ProcessGroup]) -> Tensor:
    """Broadcast a small tensor from the first rank of every group."""
    x = x.clone() if groups else x
    for group in groups:
        dist.broadcast(x, dist.get_global_rank(group, 0), group=group)
    return x


def agree(what: Mapping[str, Any], groups: Sequence[dist.ProcessGroup], device: torch.device | None = None) -> None:
    """Raise an error if the ranks differ, before a collective deadlocks.

    Args:
        what: Named values that must be equal on all ranks; compared and shown by ``repr``, without addresses and
            without the devices of tensors.
        groups: The process groups whose ranks are compared.
        device: Where the model is. NCCL sends objects through the current device, which may be another one, and the
            same on all ranks; None leaves it.

    Raises:
        RankError: The values differ. All ranks raise it.
    """
    for group in groups:
        own_values = {name: _OWN.sub("", repr(value)) for name, value in what.items()}
        all_values: list[Any] = [None] * dist.get_world_size(group)
        with _current(device):
            dist.all_gather_object(all_values, own_values, group=group)
        ranks = dist.get_process_group_ranks(group)
        for rank, other_values in zip(ranks, all_values, strict=True):
            for name in {**all_values[0], **other_values}:
                value, first = other_values.get(name, "nothing"), all_values[0].get(name, "nothing")
                if value != first:
                    raise RankError(
                        f"{name} must be the same on all ranks, but is {_short(value, first)} on rank {rank} and "
                        f"{_short(first, value)} on rank {ranks[0]}; start all ranks with the same command and data"
                    )


def leave(*, abort: bool = False) -> None:
    """Destroy all process groups.

    Args:
        abort: Give up collectives that have begun, as after an error: NCCL would wait for ranks that no longer come.
            It needs a torch with ``_abort_process_group``, which also removes the groups.
    """
    give_up = getattr(dist.distributed_c10d, "_abort_process_group", None)
    if abort and give_up is not None:
        give_up()
    if dist.is_initialized():
        dist.destroy_process_group()


def same_bits(tensors: Mapping[str, Tensor], group: dist.ProcessGroup) -> None:
    """Raise an error if a tensor differs between ranks. The check reads every tensor once and synchronizes.

    Args:
        tensors: The tensors by name. For a DTensor, the local shard is compared.
        group: The ranks that must hold equal tensors.

    Raises:
        RankError: A tensor differs. All ranks raise it.
    """
    checksums = torch.stack([_mark(t) for t in shards.local(list(tensors.values()))])  # (number of tensors,)
    all_checksums = [torch.empty_like(checksums) for _ in range(dist.get_world_size(group))]
    dist.all_gather(all_checksums, checksums, group=group)
    ranks = dist.get_process_group_ranks(group)
    for rank, other_checksums in zip(ranks, all_checksums, strict=True):
        for name, differs in zip(tensors, read(other_checksums != all_checksums[0]), strict=True):
            if differs:
                raise RankError(
                    f"replicas must be equal, but {name} has other bits on rank {rank} than on rank {ranks[0]}; "
                    "initialize them with the same seed, and give all groups the same batches"
                )


@torch.no_grad()
def _mark(t: Tensor) -> Tensor:
    """A checksum of the bits, shape ``()``; it depends on the order of the entries."""
    integer_dtypes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = t.detach().contiguous().reshape(-1).view(integer_dtypes[t.element_size()])
    # Integers of 8 bytes are made of one chunk at a time. Their sum does not depend on the order, also on overflow.
    weights = torch.arange(min(len(bits), _CHUNK), device=bits.device) % _PERIOD + 1
    result = torch.zeros((), dtype=torch.int64, device=bits.device)
    for chunk in torch.split(bits, _CHUNK):
        result += (chunk * weights[: len(chunk)]).sum()
    return result


def mark(flags: Sequence[bool]) -> int:
    """A hash of the flags, for comparison between ranks. A double holds a sum of 4,096 hashes exactly."""
    return hash(tuple(flags)) % (1 << 40)


def _short(text: str, other: str) -> str:
    """Shorten a long text to the 80 characters around its first difference from ``other``."""
    first_difference = next(
        (i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other))
    )
    start = max(0, first_difference - 20) if len(text) > 80 else 0
    return ("…" if start else "") + text[start : start + 80] + ("…" if len(text) > start + 80 else "")


def _parts(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of ``flat`` in the shapes of ``like``."""
    pieces = torch.split(flat, [t.numel() for t in like])
    return [piece.view(t.shape) for piece, t in zip(pieces, like, strict=True)]
