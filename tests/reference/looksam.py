"""Liu, Mai, Chen, Hsieh, You, "Towards Efficient and Scalable Sharpness-Aware Minimization" (LookSAM)."""

from __future__ import annotations

import numpy as np

from reference.model import Batch
from reference.twin import Twin
from reference.vectors import TINY, Weights, add, dot, norm, zeros


class LookSAM(Twin):
    """Algorithm 1 of the paper (CVPR 2022, arXiv 2203.02714), with one inner product over all tensors.

    Every k-th step is a SAM step that keeps `g_v`, the part of the SAM gradient orthogonal to `g`; the steps
    in between take `g + alpha ||g|| unit(g_v)`. A `g_v` that is only the rounding of a parallel `g_s` counts
    as zero.
    """

    def setup(self, k: int = 5, alpha: float = 0.7) -> None:
        self.k, self.alpha = k, alpha
        self.g_v = zeros(self.w)
        self.t = 0

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        refresh = self.t % self.k == 0
        self.t += 1
        g = self.gradient(batch)
        loss = self.loss(batch)
        if not refresh:
            return loss, add(g, self.g_v, self.alpha * norm(g) / (norm(self.g_v) + TINY))
        g_s = self.gradient(batch, at=self.ascent(g))
        along = dot(g, g_s) / (norm(g) ** 2 + TINY**2)
        g_v = add(g_s, g, -along)
        noise = 100.0 * np.finfo(np.float64).eps * norm(g_s)
        self.g_v = g_v if norm(g_v) > noise else zeros(self.w)
        return loss, g_s
