"""Chen, Zhou, "Revisiting Sharpness-Aware Minimization: A More Faithful and Effective Implementation" (XSAM)."""

from __future__ import annotations

import math

import numpy as np

from reference.model import Batch
from reference.twin import Twin
from reference.vectors import Weights, add, dot, norm, scale, zeros


class XSAM(Twin):
    """The rule of the paper (ICLR 2026, arXiv 2603.10048):

    p_0 = w,  p_{i+1} = p_i + (rho / k) unit(g(p_i; B))           k times
    v0 = unit(p_k - w),  h = g(p_k; B),  v1 = unit(h),  theta = arccos(v0 . v1)
    D(a) = (sin((1 - a) theta) v0 + sin(a theta) v1) / sin(theta)
    every so many steps:  alpha = argmax over a of L(w + rho_max D(a); B)
    direction:  |h| D(alpha)

    Where v0 and v1 are parallel, or v0 is no direction, the direction is h.
    """

    def setup(
        self,
        rho_max: float = 0.3,
        k: int = 1,
        every: int = 100,
        alpha_max: float = 2.0,
        alpha_delta: float = 0.1,
        alpha: float | None = None,
    ) -> None:
        self.rho_max, self.k, self.every, self.fixed = rho_max, k, every, alpha
        self.candidates = [i * alpha_delta for i in range(math.floor(alpha_max / alpha_delta + 1e-9) + 1)]
        self.t, self.alpha = 0, 1.0 if alpha is None else alpha
        self.chosen: list[float] = []

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        e = zeros(self.w)
        for _ in range(self.k):
            e = add(e, self.ascent(self.gradient(batch, at=e)), 1 / self.k)
        h = self.gradient(batch, at=e)
        if self.fixed is None and self.t % self.every == 0:
            losses = [self.loss(batch, at=scale(self._on_circle(e, h, a), self.rho_max)) for a in self.candidates]
            self.alpha = self.candidates[int(np.argmax(losses))]
        self.t += 1
        self.chosen.append(self.alpha)
        return self.loss(batch), scale(self._on_circle(e, h, self.alpha), norm(h))

    def _on_circle(self, e: Weights, h: Weights, a: float) -> Weights:
        if not norm(e) or not norm(h):
            return scale(h, 1 / norm(h)) if norm(h) else h
        v0, v1 = scale(e, 1 / norm(e)), scale(h, 1 / norm(h))
        theta = math.acos(min(1.0, max(-1.0, dot(v0, v1))))
        if math.sin(theta) < 1e-8:
            return v1
        first, second = math.sin((1 - a) * theta) / math.sin(theta), math.sin(a * theta) / math.sin(theta)
        return add(scale(v0, first), v1, second)
