"""Wang, Liu, Xie, Gao, "Fix the Loss, Not the Radius: Rethinking the Adversarial Perturbation of SAM"."""

from __future__ import annotations

from collections.abc import Callable

from reference.geometry import l2
from reference.model import Batch
from reference.twin import Twin
from reference.vectors import TINY, Weights, dot, norm, scale


class LESAM(Twin):
    """The update of the paper (ICML 2026, arXiv 2605.10183): `d = g(w + e)`, `e = rho_t unit(g)`.

    `rho_t = min(sigma_t / (||g|| + c), rho_max)`; `sigma` is a number, or a function of the step from 0.
    """

    def setup(self, sigma: float | Callable[[int], float] = 0.35) -> None:
        self.sigma, self.t = sigma, 0

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        g = self.gradient(batch)
        sigma = self.sigma(self.t) if callable(self.sigma) else self.sigma
        self.t += 1
        return self.loss(batch), self.gradient(batch, at=self.within(g, sigma))

    def within(self, g: Weights, sigma: float) -> Weights:
        """The displacement for a budget sigma."""
        if self.geometry is l2 and not isinstance(self.rho, list):
            radius = min(sigma / (norm(g) + TINY), self.rho)
            return scale(g, radius / (norm(g) + TINY))
        e = self.ascent(g)  # beyond the paper: at rho_max, shortened until <g, e> = sigma
        return scale(e, min(1.0, sigma / (dot(g, e) + TINY)))
