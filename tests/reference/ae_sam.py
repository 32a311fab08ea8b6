"""Jiang, Yang, Zhang, Kwok, "An Adaptive Policy to Employ Sharpness-Aware Minimization" (AE-SAM)."""

from __future__ import annotations

import math

from reference.model import Batch
from reference.twin import Twin
from reference.vectors import Weights, dot


class AESAM(Twin):
    """The policy of the paper (ICLR 2023, arXiv 2304.14647): SAM where this step's gradient is long for its time.

        mean <- delta * mean + (1 - delta) * q,   var <- delta * var + (1 - delta) * (q - mean)^2,   q = ||g||^2
        SAM  where  q >= mean + c_t * sqrt(var),  c_t from l2 at the start to l1 at the end

    It starts at the first norm, with a variance of zero; without a variance nothing stands out: the deviation is zero.
    With `lag = 1`, which is not the paper's, every norm is known one step late.
    """

    def setup(self, total: int, delta: float = 0.9, l1: float = -1.0, l2: float = 1.0, lag: int = 0) -> None:
        self.total, self.delta, self.l1, self.l2, self.lag = total, delta, l1, l2, lag
        self.mean, self.var, self.t = 0.0, 0.0, 0
        self.measured: list[float] = []
        self.choices: list[bool] = []
        self.deviations: list[float] = []

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        g = self.gradient(batch)
        self.measured.append(dot(g, g))
        self.deviations.append(self.deviation(self.measured[: len(self.measured) - self.lag]))
        self.choices.append(self.deviations[-1] >= self.threshold())
        self.t += 1
        if self.choices[-1]:
            return self.loss(batch), self.gradient(batch, at=self.ascent(g))
        return self.loss(batch), g

    def deviation(self, known: list[float]) -> float:
        """How many standard deviations the last known norm lies above the mean; it counts in both."""
        if not known:
            return 0.0
        q = known[-1]
        if len(known) == 1:
            self.mean = q
            return 0.0
        self.mean = self.delta * self.mean + (1.0 - self.delta) * q
        self.var = self.delta * self.var + (1.0 - self.delta) * (q - self.mean) ** 2
        return (q - self.mean) / math.sqrt(self.var) if self.var else 0.0

    def threshold(self) -> float:
        if self.l1 == self.l2:
            return self.l1
        x = min(self.t, self.total) / self.total
        return x * self.l1 + (1.0 - x) * self.l2
