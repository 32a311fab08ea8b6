"""The exchange of gradients by collectives, hidden behind backward."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lowland.core import shards
from lowland.core.errors import UsageError
from lowland.core.vec import Vec
from lowland.executors.mesh.exchange import Bucket, Exchange, all_gather, cut

BUCKET = 1 << 20  # bytes


class Messages(Exchange):
    """One all-gather, cut into buckets.

    A bucket leaves as soon as backward has its last gradient, while backward goes on with the layers below. Buckets
    leave in one order on all ranks, whatever order the gradients come in, because collectives must. Their memory is
    allocated once.

    Args:
        params: See :class:`Exchange`.
        group: See :class:`Exchange`.
        bucket: Bytes in a bucket, about; a larger one costs fewer calls, a smaller one leaves earlier.
    """

    def __init__(self, params: Vec, group: dist.ProcessGroup, *, bucket: int = BUCKET) -> None:
        super().__init__(params, group)
        self._buckets: list[Bucket] = []
        for index in cut(params, bucket):
            tensors = shards.local([params[i] for i in index])
            mine = tensors[0].new_empty(sum(map(torch.numel, tensors)))
            self._buckets.append(Bucket(index, tensors, mine, mine.new_empty(self.size, len(mine))))
        self._bucket_of = {i: b for b in self._buckets for i in b.index}
        self._hooks: dict[int, Any] = {}

    def arm(self, scale: Tensor | None, count: int) -> None:
        """Let gradients leave during the next backward, divided by the loss scale."""
        for i, p in enumerate(self._params):
            # Last among the parameter's hooks, or what leaves is not what they make of the gradient.
            if i not in self._hooks or next(reversed(p._post_accumulate_grad_hooks or {}), None) != self._hooks[i].id:
                if i in self._hooks:
                    self._hooks[i].remove()
                self._hooks[i] = p.register_post_accumulate_grad_hook(self._hook(i))  # type: ignore[no-untyped-call]
        super().arm(scale, count)
        self._reset(scale, count)

    def give(self, grads: Vec, count: int) -> None:
        """Send what has not left yet; see :meth:`Exchange.give`."""
        if not self._armed:
            self._reset(None, count)
        if self._twice:
            raise UsageError(
                "backward came to a parameter twice, so its gradient may have left before it was complete, as with "
                "reentrant checkpointing; use torch.utils.checkpoint.checkpoint(…, use_reentrant=False)"
            )
        self._armed = False
        self.given += 1
        here = shards.local(grads)
        for b in self._buckets:
            if b.handle is None:
                b.fill([here[i] for i in b.index])
                self._send(b)

    def take(self, grads: Vec, count: int) -> list[Vec]:
        """See :meth:`Exchange.take`."""
        self.wait([b.handle for b in self._buckets])
        for b in self._buckets:
            b.handle = None
        return super().take(grads, count)

    def buckets(self) -> Sequence[Bucket]:
        """See :meth:`Exchange.buckets`."""
        return self._buckets

    def _reset(self, scale: Tensor | None, count: int) -> None:
        for b in self._buckets:
            if b.handle is not None:  # after a backward that raised: its messages must not meet those of this one
                b.handle.wait()
        self._scale, self._alone, self._next = scale, count == 1, 0
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

    def _send(self, b: Bucket) -> None:
        self._next += 1
        self.bytes += b.bytes
        if not self._alone:
            b.handle = all_gather(b.everyone.view(-1), b.mine, self.group)
        else:  # the first rank's
            into = b.mine if self.rank == 0 else b.everyone[0]
            b.handle = dist.broadcast(into, group=self.group, group_src=0, async_op=True)
