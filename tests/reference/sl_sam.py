"""Cheng et al., "Sparse Layer Sharpness-Aware Minimization for Efficient Fine-Tuning" (SL-SAM)."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np

from reference.model import Batch
from reference.twin import Twin
from reference.vectors import Weights, norm


def water_fill(v: list[float], total: float) -> list[float]:
    """`min(1, f v)` with the f that makes the sum `total`; what is zero stays zero."""
    order = sorted(range(len(v)), key=lambda i: v[i], reverse=True)
    p = [1.0] * len(v)
    for full in range(len(v)):
        others = order[full:]  # the largest are at 1, and these share what is left
        rest = math.fsum(v[i] for i in others)
        if (total - full) * v[others[0]] <= rest:
            for i in others:
                p[i] = (total - full) * (v[i] / rest) if rest else 0.0
            break
    return p


class SLSAM(Twin):
    """The paper's method (arXiv 2602.09395): SAM on drawn tensors; a bandit moves their probabilities.

    What a step measures moves the probabilities at the end of the step after it, so they serve from the second
    step after it on. Tensors that are not drawn have no gradient at all.
    """

    def setup(self, s: float = 0.2, alpha_p: float = 1e-3, p_min: float = 1e-3, seed: int = 0) -> None:
        self.s, self.alpha_p, self.p_min = s, alpha_p, p_min
        self.rng = random.Random(seed)
        self.p = [s] * len(self.w)
        self.measured: tuple[list[float], list[bool], list[float]] | None = None
        self.draws: list[list[bool]] = []

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        chances = self.p
        active = self.draw(chances)
        g = self.chosen(self.gradient(batch), active)
        g_s = self.gradient(batch, at=self.ascent(g))
        if self.measured is not None:
            self.p = self.moved(*self.measured)
        self.measured = [norm([x]) for x in g], active, chances
        return self.loss(batch), [x if on else None for x, on in zip(g_s, active, strict=True)]

    def draw(self, chances: list[float]) -> list[bool]:
        active = [self.rng.random() < chance for chance in chances]
        while not any(active):
            active = [self.rng.random() < chance for chance in chances]
        self.draws.append(active)
        return active

    def chosen(self, g: Weights, active: list[bool]) -> Weights:
        return [x if on else np.zeros_like(x) for x, on in zip(g, active, strict=True)]

    def moved(self, n: list[float], active: list[bool], chances: list[float]) -> list[float]:
        """The EXP3-type rule, from the gradients' norms `n` in a step that drew `active` by `chances`."""
        drawn = [i for i, on in enumerate(active) if on]
        # fractions: the first square is a million times the second one, and cancels when the least cost is taken off
        L = max(Fraction(n[i]) for i in drawn)
        c = {i: (L / Fraction(self.p_min)) ** 2 - (Fraction(n[i]) / Fraction(chances[i])) ** 2 for i in drawn}
        v = list(self.p)
        for i in drawn:
            v[i] = self.p[i] * math.exp(-self.alpha_p * float(c[i] - min(c.values())) / chances[i])
        return [min(max(x, 1e-8), 1.0) for x in water_fill(v, self.s * len(v))]
