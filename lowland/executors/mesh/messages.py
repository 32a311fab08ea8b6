"""The exchange of gradients by collectives that overlap with backward."""

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
DEVICE_BUCKET = 25 << 20  # on a GPU, whose collectives take a time of their own to start; as in DDP


def default_bucket(device: torch.device) -> int:
    """The size of a bucket in bytes for parameters on this device."""
    return BUCKET if device.type == "cpu" else DEVICE_BUCKET


class Messages(Exchange):
    """Exchanges gradients by one all-gather per bucket.

    A bucket is sent once backward has computed its last gradient, while backward continues with earlier layers. All
    ranks send the buckets in the same order, as collectives require. The buffers are allocated once.

    Args:
        params: See :class:`Exchange`.
        group: See :class:`Exchange`.
        bucket: The approximate size of a bucket in bytes. Large buckets need fewer calls; small ones are sent earlier.
            By default 1 MiB on a CPU and 25 MiB on a GPU.
    """

    def __init__(self, params: Vec, group: dist.ProcessGroup, *, bucket: int | None = None) -> None:
        super().__init__(params, group)
        self._buckets: list[Bucket] = []
        for index in cut(params, default_bucket(params[0].device) if bucket is None else bucket):
            tensors = shards.local([params[i] for i in index])
            mine = tensors[0].new_empty(sum(map(torch.numel, tensors)))
            self._buckets.append(Bucket(index, tensors, mine, mine.new_empty(self.size, len(mine))))
        self._bucket_of = {i: b for b in self._buckets for i in b.index}
        self._hooks: dict[int, Any] = {}

    def arm(self, scale: Tensor | None, count: int) -> None:
        """Send gradients during the next backward, divided by the loss scale."""
        for i, p in enumerate(self._params):
            # This hook must run last, because other hooks may change the gradient.
            if i not in self._hooks or next(reversed(p._post_accumulate_grad_hooks or {}), None) != self._hooks[i].id:
                if i in self._hooks:
                    self._hooks[i].remove()
                self._hooks[i] = p.register_post_accumulate_grad_hook(self._hook(i))  # type: ignore[no-untyped-call]
        super().arm(scale, count)
        self._reset(scale, count)

    def give(self, grads: Vec, count: int) -> None:
        """Send the remaining buckets; see :meth:`Exchange.give`."""
        if not self._armed:
            self._reset(None, count)
        if self._twice:
            raise UsageError(
                "backward came to a parameter twice, so its gradient may have left before it was complete, as with "
                "reentrant checkpointing; use torch.utils.checkpoint.checkpoint(…, use_reentrant=False)"
            )
        self._armed = False
        self.given += 1
        local = shards.local(grads)
        for b in self._buckets:
            if b.handle is None:
                b.fill([local[i] for i in b.index])
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
            if b.handle is not None:  # a failed backward's messages must not mix with this one's
                b.handle.wait()
        self._scale, self._alone, self._next = scale, count == 1, 0
        self._seen: set[int] = set()
        self._twice = False
        for b in self._buckets:
            b.handle, b.missing = None, len(b.index)

    def _hook(self, i: int) -> Any:
        reference = weakref.ref(self)  # the hook of a parameter must not keep the exchange alive

        def ready(p: Tensor) -> None:
            exchange = reference()
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
                return  # left to give(), whose caller handles or refuses such gradients
            b.fill(grads, self._scale)
            self._send(b)

    def _send(self, b: Bucket) -> None:
        self._next += 1
        self.bytes += b.bytes
        if not self._alone:
            b.handle = all_gather(b.everyone.view(-1), b.mine, self.group)
        else:  # all ranks need the first rank's gradient only
            buffer = b.mine if self.rank == 0 else b.everyone[0]
            b.handle = dist.broadcast(buffer, group=self.group, group_src=0, async_op=True)
