"""Running statistics of BatchNorm and InstanceNorm, when the probes that update them run on several ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from lowland.errors import UsageError
from lowland.executors.base import Work
from lowland.probe import Probe


class RunningStats:
    """The running statistics that the probes of a wave update, and how they add up."""

    def __init__(self, work: Work, wave: tuple[Probe, ...]) -> None:
        self.updated = [i for i, p in enumerate(wave) if p.stats]
        norms = work.replicas.norms if self.updated else []
        self.norms = [m for m in norms if m.training and m.track_running_stats]
        counting = (isinstance(m, _BatchNorm) and m.num_batches_tracked is not None for m in self.norms)
        if len(self.updated) > 1 and not all(counting):
            raise UsageError(
                "on a mesh, running statistics of several probes need layers that count their batches, as BatchNorm "
                "does, but the model has others, such as InstanceNorm(track_running_stats=True); set it to False"
            )
        self.buffers = [b for m in self.norms for b in (m.running_mean, m.running_var) if b is not None]
        self.counts = [m.num_batches_tracked for m in self.norms if m.num_batches_tracked is not None]
        self.device = work.device
        self.before = self.flat() if len(self.updated) > 1 else None

    def given(self, rank: int) -> Tensor:
        """What :meth:`settle` is to get from this rank: :meth:`flat`, or as many zeros if nobody will look at them."""
        if self.updated and rank not in self.updated:
            size = sum(b.numel() for b in self.buffers) + len(self.counts)
            return torch.zeros(size, dtype=torch.float64, device=self.device)
        return self.flat()

    def flat(self) -> Tensor:
        """The statistics now, as doubles: means and variances, then counts of updates."""
        if not self.buffers:
            return torch.zeros(0, dtype=torch.float64, device=self.device)
        found = torch.cat(self.buffers).double()
        # Counts apart: they are not exact in single precision.
        return torch.cat([found, torch.stack(self.counts).double()]) if self.counts else found

    @torch.no_grad()
    def settle(self, rows: Tensor, rank: int) -> None:
        """What the statistics would be, had one device answered all probes in their order.

        Args:
            rows: Those of every rank of the group.
            rank: This one.
        """
        if not self.buffers:
            return
        if self.before is not None:
            self._set(self._sum(self.before, rows))
        elif self.updated[0] != rank:
            self._set(rows[self.updated[0]])

    def _set(self, row: Tensor) -> None:
        sizes = [b.numel() for b in self.buffers]
        values, counts = torch.split(row, [sum(sizes), len(self.counts)])
        # Each kind in one conversion: for every layer they would cost more than the copies.
        if len({b.dtype for b in self.buffers}) == 1:
            values = values.to(self.buffers[0].dtype)
            torch._foreach_copy_(self.buffers, list(torch.split(values, sizes)))
        else:  # in one call, older versions of torch mix up dtypes on a GPU
            for buffer, value in zip(self.buffers, torch.split(values, sizes), strict=True):
                buffer.copy_(value)
        if self.counts:
            torch._foreach_copy_(self.counts, list(counts.to(self.counts[0].dtype).unbind()))

    def _sum(self, before: Tensor, rows: Tensor) -> Tensor:
        """Statistics after the updates of all probes, each of which is known on top of ``before`` alone."""
        now, place, number = before.clone(), 0, sum(b.numel() for b in self.buffers)
        for norm in self.norms:
            width = sum(b.numel() for b in (norm.running_mean, norm.running_var) if b is not None)
            here, place = slice(place, place + width), place + width
            start = count = before[number]
            for i in self.updated:
                k = rows[i, number] - start  # how often the probe came to the layer: with micro-batches more than once
                moved = rows[i, here] - before[here]
                first, share = (_share(norm.momentum, k, n) for n in (start, count))
                # The batches pull the statistics towards values of their own, by a share that is known.
                seen = before[here] + moved / torch.where(first == 0, torch.ones_like(first), first)
                now[here] += (seen - now[here]) * share
                count = count + k
            now[number] = count
            number += 1
        return now


def _share(momentum: float | None, k: Tensor, count: Tensor) -> Tensor:
    """How far ``k`` batches move statistics that have seen ``count`` of them."""
    if momentum is None:  # a cumulative average
        return k / torch.clamp(count + k, min=1)
    return 1 - (1 - momentum) ** k
