"""Liu, Mai, Chen, Hsieh, You, "Towards Efficient and Scalable Sharpness-Aware Minimization" (LookSAM)."""

from __future__ import annotations

from collections.abc import Callable

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

    def setup(self, k: int = 5, alpha: float = 0.7, decomposition: str = "global") -> None:
        self.k, self.alpha, self.decomposition = k, alpha, decomposition
        self.g_v = zeros(self.w)
        self.t = 0

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        refresh = self.t % self.k == 0
        self.t += 1
        g = self.gradient(batch)
        loss = self.loss(batch)
        if not refresh:
            return loss, self.each(self.reuse, g, self.g_v)
        g_s = self.gradient(batch, at=self.ascent(g))
        self.g_v = self.each(self.orthogonal, g_s, g)
        return loss, g_s

    def reuse(self, g: Weights, g_v: Weights) -> Weights:
        return add(g, g_v, self.alpha * norm(g) / (norm(g_v) + TINY))

    def orthogonal(self, g_s: Weights, g: Weights) -> Weights:
        g_v = add(g_s, g, -dot(g, g_s) / (norm(g) ** 2 + TINY**2))
        noise = 100.0 * np.finfo(np.float64).eps * norm(g_s)
        return g_v if norm(g_v) > noise else zeros(g_v)

    def each(self, combine: Callable[[Weights, Weights], Weights], u: Weights, v: Weights) -> Weights:
        """All tensors together, or, in some implementations, each tensor on its own."""
        if self.decomposition == "global":
            return combine(u, v)
        return [combine([a], [b])[0] for a, b in zip(u, v, strict=True)]
