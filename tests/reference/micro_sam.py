"""Behdin et al., "mSAM: Micro-Batch-Averaged Sharpness-Aware Minimization"."""

from __future__ import annotations

from reference.model import Batch, take
from reference.twin import Twin
from reference.vectors import Weights, add, zeros


class MicroSAM(Twin):
    """The update of the paper (arXiv 2302.09693): the mean of SAM gradients of m disjoint micro-batches.

    Each is perturbed by its own gradient, from the same weights. The sizes of the `min(m, |B|)` micro-batches
    differ by at most one, the larger first; each counts with its share of the batch.
    """

    def setup(self, m: int = 4) -> None:
        self.m = m

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        size = len(batch[0])
        m = min(self.m, size)
        sizes = [size // m + (1 if j < size % m else 0) for j in range(m)]
        loss, total, start = 0.0, zeros(self.w), 0
        for count in sizes:
            micro = take(batch, range(start, start + count))
            start += count
            g_s = self.gradient(micro, at=self.ascent(self.gradient(micro)))
            total = add(total, g_s, count / size)
            loss += count / size * self.loss(micro)
        return loss, total
