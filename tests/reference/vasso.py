"""Li, Giannakis, "Enhancing Sharpness-Aware Optimization Through Variance Suppression" (VaSSO)."""

from __future__ import annotations

from reference.model import Batch
from reference.twin import Twin
from reference.vectors import Weights, lerp


class VaSSO(Twin):
    """The paper's update (NeurIPS 2023, arXiv 2309.15639); as in the release the average starts at the first gradient:

    m_1 = g_1,   m_t = (1 - theta) m_{t-1} + theta g_t
    direction:  g(w + rho unit(m_t); B)
    """

    def setup(self, theta: float = 0.9) -> None:
        self.theta = theta
        self.mean: Weights | None = None

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        g = self.gradient(batch)
        self.mean = g if self.mean is None else lerp(self.mean, g, self.theta)
        return self.loss(batch), self.gradient(batch, at=self.ascent(self.mean))
