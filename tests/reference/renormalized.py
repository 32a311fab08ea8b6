"""Tan, Zhang, Liu, Wang, Hao, "Stabilizing Sharpness-aware Minimization Through A Simple Renormalization Strategy"."""

from __future__ import annotations

from reference.model import Batch
from reference.sam import SAM
from reference.vectors import Weights, norm, scale
from reference.wrapper import Inner, Wrapper


class Renormalized(Wrapper):
    """The rule of the paper (arXiv 2401.07250): the inner direction, scaled to the length of the gradient.

    Written for SAM's direction (Stable SAM), it fits any method; where the direction is zero, it stays zero.
    """

    def setup(self, inner: Inner = (SAM, {})) -> None:
        self.inner = self.start(inner)

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        loss, d = self.ask(self.inner, batch)
        length = norm(d)
        return loss, scale(d, norm(self.gradient(batch)) / length) if length else d
