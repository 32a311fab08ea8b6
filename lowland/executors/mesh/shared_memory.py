"""The exchange of gradients on one host, through shared memory."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack, suppress

import torch
import torch.distributed as dist
from torch import Tensor

from lowland.core import shards
from lowland.core.errors import RankError
from lowland.core.vec import Vec
from lowland.executors.mesh.exchange import Bucket, Exchange, cut

ALIGNED = 64  # the alignment of buckets in bytes
SWITCH = "LOWLAND_SHARED_MEMORY"  # an environment variable; "0" selects messages instead


class SharedMemory(Exchange):
    """Exchanges gradients through shared memory: each rank writes its own and reads the others'.

    Each rank has two buffers and alternates between them. A collective follows every :meth:`give`. After it, all ranks
    have read the previous exchange, so the next exchange may overwrite the previous buffer. A failed exchange is
    repeated in the same buffer.

    Args:
        params: See :class:`Exchange`.
        group: See :class:`Exchange`.
        memory: The memory from :func:`common_memory`, of the size that :func:`needed` returns.
    """

    def __init__(self, params: Vec, group: dist.ProcessGroup, memory: Tensor) -> None:
        super().__init__(params, group)
        self._places: list[list[Bucket]] = []
        for area in memory[ALIGNED:].view(2, self.size, -1):
            self._places.append([])
            start = 0
            for index in cut(params, math.inf):
                tensors = shards.local([params[i] for i in index])
                size = _size(tensors)
                everyone = area[:, start : start + size].view(tensors[0].dtype)
                start += _aligned(size)
                self._places[-1].append(Bucket(index, tensors, everyone[self.rank], everyone))

    def give(self, grads: Vec, count: int) -> None:
        """Write this rank's gradient; see :meth:`Exchange.give`."""
        self._armed = False
        self.given += 1
        if self.rank >= count:
            return
        local = shards.local(grads)
        for b in self.buckets():
            b.fill([local[i] for i in b.index])
            self.bytes += b.bytes

    def check(self, given: Tensor, taken: Tensor) -> None:
        """See :meth:`Exchange.check`: a buffer may hold the gradient of an older exchange."""
        if bool((given != given[0]).any() | (taken != taken[0]).any()):
            numbers = [int(n) for n in given]
            raise RankError(
                f"all groups of a mesh must take the same steps, but they have given {numbers} gradients and taken "
                f"part in {[int(n) for n in taken]} exchanges; where a step fails on one rank, end the others, too"
            )

    def buckets(self) -> Sequence[Bucket]:
        """See :meth:`Exchange.buckets`."""
        return self._places[self.taken % 2]


def needed(params: Vec, ranks: int) -> int:
    """The size in bytes of two gradients of every rank."""
    bytes_per_vector = sum(_aligned(_size(shards.local([params[i] for i in index]))) for index in cut(params, math.inf))
    return ALIGNED + 2 * ranks * max(bytes_per_vector, ALIGNED)  # a rank's shards may be empty


def wanted(params: Vec) -> bool:
    """Whether to try shared memory: all parameters are on the CPU and the environment does not forbid it."""
    return all(type(t) in shards.ORDINARY and t.is_cpu for t in shards.local(params)) and os.environ.get(SWITCH) != "0"


def common_memory(group: dist.ProcessGroup, size: int) -> Tensor | None:
    """Allocate anonymous memory that all ranks of a group share. The kernel frees it with the last process.

    Args:
        group: The process group.
        size: The size in bytes, the same on all ranks; 0 on a rank that refuses shared memory.

    Returns:
        A tensor of bytes over the same memory on all ranks, whose first ``ALIGNED`` bytes are reserved. All ranks get
        None if one of them refuses, runs on another host, or cannot map the memory.
    """
    sizes: list[int] = [0] * dist.get_world_size(group)
    dist.all_gather_object(sizes, size, group=group)
    if 0 in sizes or len(set(sizes)) > 1:
        return None
    with ExitStack() as stack:
        offers: list[tuple[str, bytes] | None] = [None] * len(sizes)
        dist.all_gather_object(offers, _made(size, stack) if dist.get_rank(group) == 0 else None, group=group)
        memory = None if offers[0] is None else _mapped(*offers[0], size)
        mapped: list[bool] = [False] * len(sizes)
        dist.all_gather_object(mapped, memory is not None, group=group)
    return memory if all(mapped) else None


def _made(size: int, stack: ExitStack) -> tuple[str, bytes] | None:
    """Allocate memory that stays open until the stack closes; return its path and its first bytes."""
    token = os.urandom(ALIGNED)
    with suppress(AttributeError, OSError):  # not Linux, or no memory
        fd = os.memfd_create("lowland")
        stack.callback(os.close, fd)
        os.posix_fallocate(fd, 0, size)  # allocated now, because a later lack of memory would kill the writer
        os.pwrite(fd, token, 0)
        return f"/proc/{os.getpid()}/fd/{fd}", token
    return None


def _mapped(path: str, token: bytes, size: int) -> Tensor | None:
    with suppress(OSError, RuntimeError):
        # On another host, the path may belong to another process's file, such as a pipe that must not be read.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            return None
        with open(path, "rb") as file:
            if file.read(len(token)) != token:
                return None
        return torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
    return None


def _size(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
