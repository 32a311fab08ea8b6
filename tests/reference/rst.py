"""Zhao, Zhang, Hu, "Randomized Sharpness-Aware Training for Boosting Computational Efficiency" (RST)."""

from __future__ import annotations

import random

from reference.model import Batch
from reference.twin import Twin
from reference.vectors import Weights


class RST(Twin):
    """The schedule of the paper (2022): before every step a coin decides, SAM with probability s, else the base."""

    def setup(self, s: float = 0.5, seed: int = 0) -> None:
        self.s, self.rng = s, random.Random(seed)
        self.choices: list[bool] = []

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        self.choices.append(self.rng.random() < self.s)
        g = self.gradient(batch)
        if self.choices[-1]:
            g = self.gradient(batch, at=self.ascent(g))
        return self.loss(batch), g
