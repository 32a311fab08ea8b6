"""The exchange of gradients on one host, through memory that its processes share."""

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

ALIGNED = 64  # bytes at whose multiples buckets begin
SWITCH = "LOWLAND_SHARED_MEMORY"  # "0" in the environment: messages in its place


class SharedMemory(Exchange):
    """Every rank writes its vector where the others read it: a copy on each side, and no message.

    Each rank has two places, for exchanges in turn. After the collective that follows an exchange all have written,
    and so have read what was exchanged before: the place of that one can be written anew. An exchange that does not
    come to its end is repeated in its own place.

    Args:
        params: See :class:`Exchange`.
        group: See :class:`Exchange`.
        memory: See :func:`common_memory`; as large as :func:`needed` says.
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
        """Write this rank's vector; see :meth:`Exchange.give`."""
        self._armed = False
        self.given += 1
        if self.rank >= count:
            return
        here = shards.local(grads)
        for b in self.buckets():
            b.fill([here[i] for i in b.index])
            self.bytes += b.bytes

    def check(self, given: Tensor, taken: Tensor) -> None:
        """See :meth:`Exchange.check`: what lies in a place may be old."""
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
    """Bytes for two vectors of every rank."""
    each = sum(_aligned(_size(shards.local([params[i] for i in index]))) for index in cut(params, math.inf))
    return ALIGNED + 2 * ranks * max(each, ALIGNED)  # of sharded parameters, a rank may have nothing


def wanted(params: Vec) -> bool:
    """Whether memory can be shared at all: where weights are on the CPU, unless the environment says no."""
    return all(type(t) in shards.ORDINARY and t.is_cpu for t in shards.local(params)) and os.environ.get(SWITCH) != "0"


def common_memory(group: dist.ProcessGroup, size: int) -> Tensor | None:
    """Memory that all ranks of a group share, without a name, so that nothing is left of it whatever happens.

    Args:
        group: The ranks.
        size: Bytes, the same on all ranks; 0 on a rank that wants none.

    Returns:
        Bytes, the same on all ranks, of which the first ``ALIGNED`` are spoken for; None, on all, if a rank wants none,
        runs on another host, or cannot map them.
    """
    sizes: list[int] = [0] * dist.get_world_size(group)
    dist.all_gather_object(sizes, size, group=group)
    if 0 in sizes or len(set(sizes)) > 1:
        return None
    with ExitStack() as stack:
        mine: list[tuple[str, bytes] | None] = [None] * len(sizes)
        dist.all_gather_object(mine, _made(size, stack) if dist.get_rank(group) == 0 else None, group=group)
        memory = None if mine[0] is None else _mapped(*mine[0], size)
        found: list[bool] = [False] * len(sizes)
        dist.all_gather_object(found, memory is not None, group=group)
    return memory if all(found) else None


def _made(size: int, stack: ExitStack) -> tuple[str, bytes] | None:
    """New memory that is open until the stack closes: the path under which others find it, and what it begins with."""
    token = os.urandom(ALIGNED)
    with suppress(AttributeError, OSError):  # not Linux, or no memory
        fd = os.memfd_create("lowland")
        stack.callback(os.close, fd)
        os.posix_fallocate(fd, 0, size)  # now, or a lack of memory would kill whoever writes
        os.pwrite(fd, token, 0)
        return f"/proc/{os.getpid()}/fd/{fd}", token
    return None


def _mapped(path: str, token: bytes, size: int) -> Tensor | None:
    with suppress(OSError, RuntimeError):
        # On another host a process of the same number may have anything there, such as a pipe with somebody's data.
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
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
