"""The exchange of gradients among the groups of a mesh, hidden behind backward."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lowland import collectives, shards
from lowland.errors import UsageError
from lowland.vec import Vec

BUCKET = 1 << 20  # bytes


class Exchange:
    """Gives every group of a mesh the vectors of all others, exactly: one all-gather, cut into buckets.

    A bucket leaves as soon as backward has its last gradient, while backward goes on with the layers below. Buckets
    leave in one order on all ranks, whatever order the gradients come in, because collectives must. Their memory is
    allocated once.

    Args:
        params: The parameters whose gradients are exchanged; of DTensors, the local shards.
        group: One rank of every group of the mesh.
        bucket: Bytes in a bucket, about; a larger one costs fewer calls, a smaller one leaves earlier.

    Attributes:
        bytes: Of gradients, what this rank has given into collectives so far.
        waited: Seconds for which this rank has waited in exchanges after its backward, whether for messages on their
            way, which backward did not hide, or for a rank that is slower.
    """

    def __init__(self, params: Vec, group: dist.ProcessGroup, *, bucket: int = BUCKET) -> None:
        self.group, self.size, self.rank = group, dist.get_world_size(group), dist.get_rank(group)
        self.bytes, self.waited = 0, 0.0
        self._params = params
        # Backward reaches the last layers first.
        self._buckets = [
            _Bucket(index, shards.local([params[i] for i in index]), self.size) for index in cut(params, bucket)
        ]
        self._bucket_of = {i: b for b in self._buckets for i in b.index}
        self._scale: Tensor | None = None
        self._root: int | None = None
        self._armed = self._cut = False
        self._hooks: dict[int, Any] = {}

    def arm(self, scale: Tensor | None, root: int | None) -> None:
        """Let gradients leave during the next backward, divided by the loss scale.

        Args:
            scale: The loss scale, shape ``()``; None without one.
            root: The only rank of the group whose vector is wanted; None: everyone's is.
        """
        for i, p in enumerate(self._params):
            # Last among the parameter's hooks, or what leaves is not what they make of the gradient.
            if i not in self._hooks or next(reversed(p._post_accumulate_grad_hooks or {}), None) != self._hooks[i].id:
                if i in self._hooks:
                    self._hooks[i].remove()
                self._hooks[i] = p.register_post_accumulate_grad_hook(self._hook(i))  # type: ignore[no-untyped-call]
        if self._cut:  # or messages would be taken for those of another step
            collectives.agree({"buckets sent before backward failed": self._next}, [self.group])
            self._cut = False
        self._reset(scale, root)
        self._armed = True

    def disarm(self) -> None:
        """Forget a backward that did not come to its end."""
        self._cut |= self._armed
        self._armed = False

    def finish(self, grads: Vec, root: int | None) -> list[Vec]:
        """Send what has not left yet, and wait for all.

        Args:
            grads: This rank's vector, divided by the loss scale.
            root: As in :meth:`arm`.

        Returns:
            The vectors of all ranks of the group, in their order, of which this rank's is ``grads``; with a root, its
            alone. They share no memory with the buffers of the exchange.

        Raises:
            UsageError: Backward accumulated more than once into a parameter.
        """
        if not self._armed:
            self._reset(None, root)
        if self._twice:
            raise UsageError(
                "backward came to a parameter twice, so its gradient may have left before it was complete, as with "
                "reentrant checkpointing; use torch.utils.checkpoint.checkpoint(…, use_reentrant=False)"
            )
        self._armed = False
        here = shards.local(grads)
        for b in self._buckets:
            if b.handle is None:
                b.fill([here[i] for i in b.index], None)
                self._send(b)
        self.wait([b.handle for b in self._buckets])
        for b in self._buckets:
            b.handle = None
        found: list[Vec] = []
        for number in range(self.size) if root is None else [0]:
            if root is None and number == self.rank:
                found.append(grads)
                continue
            parts = [torch.empty_like(t) for t in shards.local(self._params)]
            for b in self._buckets:
                b.take(number, root, [parts[i] for i in b.index])
            found.append(shards.like(grads, parts))
        return found

    def wait(self, handles: Sequence[Any]) -> None:
        """Wait for collectives, and count the time."""
        begun = time.perf_counter()
        for handle in handles:
            handle.wait()
        self.waited += time.perf_counter() - begun

    def _reset(self, scale: Tensor | None, root: int | None) -> None:
        for b in self._buckets:
            if b.handle is not None:  # after a backward that raised: its messages must not meet those of this one
                b.handle.wait()
        self._scale, self._root, self._next = scale, root, 0
        self._seen: set[int] = set()
        self._twice = False
        for b in self._buckets:
            b.handle, b.missing = None, len(b.index)

    def _hook(self, i: int) -> Any:
        here = weakref.ref(self)  # parameters outlive exchanges

        def ready(p: Tensor) -> None:
            exchange = here()
            if exchange is not None and exchange._armed:
                exchange._ready(i)

        return ready

    def _ready(self, i: int) -> None:
        self._twice |= i in self._seen
        self._seen.add(i)
        bucket = self._bucket_of[i]
        bucket.missing -= 1
        if bucket.missing:
            return
        while self._next < len(self._buckets) and self._buckets[self._next].missing == 0:
            b = self._buckets[self._next]
            grads: list[Any] = [self._params[j].grad for j in b.index]
            if any(g is None or g.layout is not torch.strided for g in grads):
                return  # whoever takes the gradients knows what to do with such, or what to say
            b.fill(grads, self._scale)
            self._send(b)

    def _send(self, b: _Bucket) -> None:
        self._next += 1
        self.bytes += b.mine.numel() * b.mine.element_size()
        if self._root is None:
            b.handle = all_gather(b.everyone, b.mine, self.group)
        else:
            b.handle = dist.broadcast(b.mine, group=self.group, group_src=self._root, async_op=True)


class _Bucket:
    """Some tensors as one flat one, and room for those of all ranks."""

    def __init__(self, index: list[int], tensors: Sequence[Tensor], ranks: int) -> None:
        self.index = index
        sizes = [t.numel() for t in tensors]
        self.mine = torch.empty(sum(sizes), dtype=tensors[0].dtype, device=tensors[0].device)
        self.everyone = self.mine.new_empty(ranks * len(self.mine))
        flats = [self.mine, *self.everyone.view(ranks, len(self.mine))]
        # Views of this rank's tensors, then of those of all ranks.
        self.views, *self.rows = (
            [v.view(t.shape) for v, t in zip(torch.split(flat, sizes), tensors, strict=True)] for flat in flats
        )
        self.handle: Any = None
        self.missing = len(index)

    @torch.no_grad()
    def fill(self, grads: Sequence[Tensor], scale: Tensor | None) -> None:
        torch._foreach_copy_(self.views, list(grads))
        if scale is not None:
            self.mine.div_(scale)

    @torch.no_grad()
    def take(self, number: int, root: int | None, into: list[Tensor]) -> None:
        """Copy one rank's tensors; into tensors laid out as the parameters, or norms would add up in another order."""
        torch._foreach_copy_(into, self.views if root is not None else self.rows[number])


def cut(params: Vec, most: int) -> list[list[int]]:
    """The places of the parameters in buckets of about ``most`` bytes and one dtype, the last parameters first."""
    buckets: list[list[int]] = []
    room, kind = 0, None
    here = shards.local(params)
    for i in reversed(range(len(here))):
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
