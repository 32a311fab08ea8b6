"""Becker, Altrock, Risse, "Momentum-SAM: Sharpness Aware Minimization without Computational Overhead"."""

from __future__ import annotations

from reference.base import SGD, Adam
from reference.model import Batch
from reference.twin import Twin
from reference.vectors import Weights, scale, zeros


class MomentumSAM(Twin):
    """Algorithm 1 of the paper (arXiv 2401.12033): the gradient at `w - rho unit(v)`.

    `v` is the base optimizer's momentum before the step: SGD's buffer, Adam's first moment as it is kept,
    without bias correction. Before the first step there is none, and no perturbation.
    """

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        e = scale(self.ascent(self.momentum()), -1.0)
        return self.loss(batch, at=e), self.gradient(batch, at=e)

    def momentum(self) -> Weights:
        if isinstance(self.base, SGD):
            return self.base.buffer or zeros(self.w)
        assert isinstance(self.base, Adam)
        return self.base.m or zeros(self.w)
