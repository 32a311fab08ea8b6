"""Jo, Lim, Lee, "Asynchronous Sharpness-Aware Minimization For Fast and Accurate Deep Learning" (AsyncSAM)."""

from __future__ import annotations

import numpy as np

from reference.model import Batch
from reference.sampling import part, pick
from reference.twin import Twin
from reference.vectors import Weights, zeros


class AsyncSAM(Twin):
    """The rule of the paper (arXiv 2503.11147): `d = g(w + rho unit(a); B)`, a a gradient on the first part of a batch.

    With tau = 1 it is the part of the batch before, at the weights before; on the first step there is none.
    With tau = 0 it is this batch's part at these weights.
    """

    def setup(self, share: float = 0.25, tau: int = 1) -> None:
        self.share, self.tau = share, tau
        self.stale = zeros(self.w)

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        fresh = self.gradient(pick(batch, np.arange(part(self.share, len(batch[0])))))
        e = self.ascent(self.stale if self.tau else fresh)
        self.stale = fresh
        return self.loss(batch, at=e), self.gradient(batch, at=e)
