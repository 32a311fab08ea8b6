"""What an exchange of gradients among the groups of a mesh is, and its buckets."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lowland.core import shards
from lowland.core.vec import Vec
from lowland.executors.mesh import collectives


class Exchange(ABC):
    """Gives every group of a mesh the vectors of all others, exactly.

    Args:
        params: The parameters whose gradients are exchanged; of DTensors, the local shards.
        group: One rank of every group of the mesh.

    Attributes:
        bytes: Of gradients, what this rank has given to the others so far.
        given: For how many exchanges it was asked, also for those that did not come to their end.
        taken: How many exchanges have come to their end.
        waited: Seconds for which this rank has waited in exchanges after its backward, whether for what is on its way,
            which backward did not hide, or for a rank that is slower.
    """

    def __init__(self, params: Vec, group: dist.ProcessGroup) -> None:
        self.group, self.size, self.rank = group, dist.get_world_size(group), dist.get_rank(group)
        self.bytes, self.given, self.taken, self.waited = 0, 0, 0, 0.0
        self._params = params
        self._armed = self._cut = False
        self._next = 0  # how many buckets have left

    def arm(self, scale: Tensor | None, count: int) -> None:
        """Prepare for the next backward.

        Args:
            scale: The loss scale, shape ``()``, by which its gradients are to be divided; None without one.
            count: The vectors of how many ranks are wanted, which are the first ones of the group.
        """
        if self._cut:  # or what this rank gives would be taken for that of another step
            collectives.agree({"buckets sent before backward failed": self._next}, [self.group])
            self._cut = False
        self._armed = True

    def disarm(self) -> None:
        """Forget a backward that did not come to its end."""
        self._cut |= self._armed
        self._armed = False

    @abstractmethod
    def give(self, grads: Vec, count: int) -> None:
        """Let the others have this rank's vector, divided by the loss scale; count is as in :meth:`arm`.

        Raises:
            UsageError: Backward accumulated more than once into a parameter.
        """

    def check(self, given: Tensor, taken: Tensor) -> None:  # noqa: B027 - what comes by messages comes in order
        """Refuse vectors of another exchange.

        Args:
            given: What all ranks of the group have of this attribute, shape ``(ranks,)``.
            taken: The same.

        Raises:
            RankError: They differ; on all ranks.
        """

    def take(self, grads: Vec, count: int) -> list[Vec]:
        """The vectors of the first ranks, once every rank has given its own and has said so in another collective.

        Args:
            grads: This rank's vector, as it was given.
            count: As in :meth:`arm`.

        Returns:
            ``count`` vectors, of which this rank's is ``grads``. They share no memory with the buffers of the exchange.
        """
        found: list[Vec] = []
        for number in range(count):
            if number == self.rank:
                found.append(grads)
                continue
            # Laid out as the parameters, or norms would add up in another order.
            parts = [torch.empty_like(t) for t in shards.local(self._params)]
            with torch.no_grad():
                for b in self.buckets():
                    torch._foreach_copy_([parts[i] for i in b.index], b.rows[number])
            found.append(shards.like(grads, parts))
        self.taken += 1
        return found

    @abstractmethod
    def buckets(self) -> Sequence[Bucket]:
        """Where the vectors of the others lie."""

    def wait(self, handles: Sequence[Any]) -> None:
        """Wait for collectives, and count the time."""
        begun = time.perf_counter()
        for handle in handles:
            handle.wait()
        self.waited += time.perf_counter() - begun


class Bucket:
    """Some tensors in one flat one, and those of all ranks.

    Args:
        index: The places of the tensors among the parameters.
        tensors: The tensors, for their shapes.
        mine: Room for this rank's, flat.
        everyone: Room for those of all ranks, shape ``(ranks, len(mine))``; this rank's row may be ``mine``.
    """

    def __init__(self, index: list[int], tensors: Sequence[Tensor], mine: Tensor, everyone: Tensor) -> None:
        self.index, self.mine, self.everyone = index, mine, everyone
        sizes = [t.numel() for t in tensors]
        # Views of this rank's tensors, then of those of all ranks.
        self.views, *self.rows = (
            [v.view(t.shape) for v, t in zip(torch.split(flat, sizes), tensors, strict=True)]
            for flat in (mine, *everyone)
        )
        self.handle: Any = None
        self.missing = len(index)

    @property
    def bytes(self) -> int:
        """Of one rank's tensors."""
        return self.mine.numel() * self.mine.element_size()

    @torch.no_grad()
    def fill(self, grads: Sequence[Tensor], scale: Tensor | None = None) -> None:
        """Copy this rank's gradients, divided by the loss scale where there is one."""
        torch._foreach_copy_(self.views, list(grads))
        if scale is not None:
            self.mine.div_(scale)


def cut(params: Vec, most: float) -> list[list[int]]:
    """The places of the parameters in buckets of about ``most`` bytes and one dtype, the last parameters first."""
    buckets: list[list[int]] = []
    room, kind = 0.0, None
    here = shards.local(params)
    for i in reversed(range(len(here))):  # backward reaches the last layers first
        t = here[i]
        if room <= 0 or t.dtype != kind:
            buckets.append([])
            room, kind = most, t.dtype
        buckets[-1].append(i)
        room -= t.numel() * t.element_size()
    return buckets


def all_gather(everyone: Tensor, mine: Tensor, group: dist.ProcessGroup) -> Any:
    """Start an all-gather of flat tensors; what it returns is waited for."""
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.13
    return gather(everyone, mine, group=group, async_op=True)
