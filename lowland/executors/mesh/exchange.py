"""The interface of a gradient exchange between the groups of a mesh, and its buckets."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lowland.core import precision, shards
from lowland.core.transfer import has_streams
from lowland.core.vec import Vec
from lowland.executors.mesh import collectives


class Exchange(ABC):
    """Gives every group of a mesh the gradients of all other groups, without rounding.

    Args:
        params: The parameters whose gradients are exchanged. For DTensors, the local shards are exchanged.
        group: The process group that holds one rank of every group of the mesh.

    Attributes:
        bytes: Bytes of gradients that this rank has sent so far.
        given: The number of exchanges begun, including those that failed.
        taken: The number of exchanges completed.
        waited: Seconds that this rank has waited for exchanges after its backward, either for transfers or for a slower
            rank; NaN on a GPU, which waits in its own queue, while the host goes on.
    """

    def __init__(self, params: Vec, group: dist.ProcessGroup) -> None:
        self.group, self.size, self.rank = group, dist.get_world_size(group), dist.get_rank(group)
        self.bytes, self.given, self.taken = 0, 0, 0
        self.waited = math.nan if has_streams(params[0].device) else 0.0
        self._params = params
        self._armed = self._cut = False
        self._next = 0  # the number of buckets sent

    def arm(self, scale: Tensor | None, count: int) -> None:
        """Prepare for the next backward.

        Args:
            scale: The loss scale, shape ``()``, by which the gradients are divided; None without loss scaling.
            count: The number of ranks whose gradients are exchanged: the first ``count`` ranks of the group.
        """
        if self._cut:  # a bucket of the failed step would count for the next step
            collectives.agree({"buckets sent before backward failed": self._next}, [self.group], self._params[0].device)
            self._cut = False
        self._armed = True

    def disarm(self) -> None:
        """Discard the state of a backward that failed."""
        self._cut |= self._armed
        self._armed = False

    @abstractmethod
    def give(self, grads: Vec, count: int) -> None:
        """Publish this rank's gradient, divided by the loss scale; count is as in :meth:`arm`.

        Raises:
            UsageError: Backward accumulated more than once into a parameter.
        """

    def check(self, given: Tensor, taken: Tensor) -> None:  # noqa: B027 - messages arrive in order
        """Raise an error if the ranks have run different numbers of exchanges.

        Args:
            given: The attribute ``given`` of every rank of the group, shape ``(ranks,)``.
            taken: The attribute ``taken`` of every rank, shape ``(ranks,)``.

        Raises:
            RankError: The numbers differ. All ranks raise it.
        """

    def take(self, grads: Vec, count: int) -> list[Vec]:
        """Copy the gradients of the first ``count`` ranks. A collective must separate it from :meth:`give`.

        Args:
            grads: This rank's gradient, as passed to :meth:`give`.
            count: As in :meth:`arm`.

        Returns:
            ``count`` gradients; the entry of this rank is ``grads``. None shares memory with the exchange's buffers.
        """
        vectors: list[Vec] = []
        for rank in range(count):
            if rank == self.rank:
                vectors.append(grads)
                continue
            # The parameters' memory layout keeps the order of summation in norms.
            parts = [torch.empty_like(t) for t in shards.local(self._params)]
            with torch.no_grad():
                for b in self.buckets():
                    torch._foreach_copy_([parts[i] for i in b.index], b.rows[rank])
            vectors.append(shards.like(grads, precision.widened(parts)))
        self.taken += 1
        return vectors

    @abstractmethod
    def buckets(self) -> Sequence[Bucket]:
        """The buckets that hold the gradients of all ranks."""

    def wait(self, handles: Sequence[Any]) -> None:
        """Wait for collectives and add the time to ``waited``. A GPU waits, and the host does not."""
        begun = time.perf_counter()
        for handle in handles:
            handle.wait()
        self.waited += time.perf_counter() - begun


class Bucket:
    """A flat buffer for some gradients of this rank, and a buffer for those of all ranks.

    Args:
        index: The indices of the bucket's parameters.
        tensors: The parameters, which give the shapes.
        mine: The flat buffer of this rank.
        everyone: The buffer of all ranks, shape ``(ranks, len(mine))``; this rank's row may be ``mine``.
    """

    def __init__(self, index: list[int], tensors: Sequence[Tensor], mine: Tensor, everyone: Tensor) -> None:
        self.index, self.mine, self.everyone = index, mine, everyone
        sizes = [t.numel() for t in tensors]
        # Views into this rank's buffer, then into the row of every rank.
        self.views, *self.rows = (
            [v.view(t.shape) for v, t in zip(torch.split(flat, sizes), tensors, strict=True)]
            for flat in (mine, *everyone)
        )
        self.handle: Any = None
        self.missing = len(index)

    @property
    def bytes(self) -> int:
        """The size of one rank's buffer in bytes."""
        return self.mine.numel() * self.mine.element_size()

    @torch.no_grad()
    def fill(self, grads: Sequence[Tensor], scale: Tensor | None = None) -> None:
        """Copy this rank's gradients into its buffer, divided by the loss scale if given."""
        torch._foreach_copy_(self.views, list(grads))
        if scale is not None:
            self.mine.div_(scale)


def cut(params: Vec, most: float) -> list[list[int]]:
    """Group parameter indices into buckets of about ``most`` bytes and one dtype, the last parameters first."""
    buckets: list[list[int]] = []
    room, dtype = 0.0, None
    local = shards.local(params)
    for i in reversed(range(len(local))):  # backward reaches the last layers first
        tensor = local[i]
        if room <= 0 or tensor.dtype != dtype:
            buckets.append([])
            room, dtype = most, tensor.dtype
        buckets[-1].append(i)
        room -= tensor.numel() * tensor.element_size()
    return buckets


def all_gather(everyone: Tensor, mine: Tensor, group: dist.ProcessGroup) -> Any:
    """Start an all-gather of flat tensors and return its handle."""
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.13
    return gather(everyone, mine, group=group, async_op=True)
