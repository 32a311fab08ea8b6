"""Jiang, Yang, Zhang, Kwok, "An Adaptive Policy to Employ Sharpness-Aware Minimization" (AE-SAM)."""

from __future__ import annotations

import math

from reference.model import Batch
from reference.twin import Twin
from reference.vectors import Weights, dot


class AESAM(Twin):
    """The policy of the paper (ICLR 2023, arXiv 2304.14647), every norm read one step late.

    SAM where `q = ||g||^2` stands `c_t` standard deviations or more above its running mean, `c_t` going from l2 at
    the start to l1 at the end. Without a variance nothing stands out: the deviation is zero.
    """

    def setup(self, total: int, delta: float = 0.9, l1: float = -1.0, l2: float = 1.0) -> None:
        self.total, self.delta, self.l1, self.l2 = total, delta, l1, l2
        self.mean, self.var, self.t = 0.0, 0.0, 0
        self.measured: list[float] = []
        self.choices: list[bool] = []

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        self.choices.append(self.deviation() >= self.threshold())
        self.t += 1
        g = self.gradient(batch)
        self.measured.append(dot(g, g))
        if self.choices[-1]:
            return self.loss(batch), self.gradient(batch, at=self.ascent(g))
        return self.loss(batch), g

    def deviation(self) -> float:
        """How many standard deviations the norm of the step before lies above the mean; it counts in both."""
        if not self.measured:
            return 0.0
        q = self.measured[-1]
        if len(self.measured) == 1:
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
