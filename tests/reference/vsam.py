"""Deng, Pang, Zhang, Wang, "Effective Gradient Sample Size via Variation Estimation" (vSAM).

The successor ARSAM (Deng, Pang, arXiv 2510.03763) decomposes and mixes the same way, but its sampling rule
could not be read; vSAM's stands in for it.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from reference.model import Batch
from reference.twin import Twin
from reference.vectors import Weights, add, norm, zeros

REUSES = 6  # after this many reuses psf is dropped until the next refresh


def relative_change(values: Iterable[float]) -> float:
    """The mean of `(x_i - x_{i-1}) / x_{i-1}`, clipped to [-1, 1]; pairs that start at 0 are left out."""
    values = list(values)
    changes = [(new - old) / old for old, new in pairwise(values) if old != 0.0]
    return min(max(sum(changes) / len(changes), -1.0), 1.0) if changes else 0.0


def block_variance(values: Iterable[float], blocks: int) -> float:
    """Sorted and cut into blocks, the mean of the variances inside them; an empty block has none."""
    parts = np.array_split(np.sort(np.array(list(values))), blocks)
    return float(sum(part.var() if len(part) else 0.0 for part in parts) / blocks)


class VSAM(Twin):
    """The window rule of the paper (arXiv 2403.08821), every figure read one refresh late.

    Out of every `window` steps `floor(s)` are SAM steps, which keep `psf = g_s - g`; the j-th step after one
    takes `g + beta^j psf` (`g` alone after six). When a window starts, `s` follows the relative changes of
    two histories: of `N(psf)/N(g)`, and of the block-wise variance of `N(psf)`, N being the norm over the
    last few tensors.
    """

    def setup(
        self,
        window: int = 50,
        blocks: int = 5,
        p_max: float = 0.8,
        a1: float = 0.13,
        a2: float = 0.13,
        beta: float = 0.7,
        last: int = 10,
        warmup: int = 0,
        seed: int = 0,
    ) -> None:
        self.window, self.blocks, self.p_max, self.a1, self.a2 = window, blocks, p_max, a1, a2
        self.beta, self.last, self.warmup = beta, last, warmup
        self.rng = random.Random(seed)
        self.psf, self.j = zeros(self.w), 0
        self.s, self.prob, self.used = 1.0, 0.0, 0
        self.t = 0
        self.measured: tuple[float, float] | None = None
        self.ratios: deque[float] = deque(maxlen=window)  # R
        self.norms: deque[float] = deque(maxlen=window)  # Q
        self.variances: deque[float] = deque(maxlen=window)  # U
        self.refreshes: list[bool] = []
        self.budgets: list[float] = []

    def decide(self) -> bool:
        """Whether this step refreshes."""
        c = self.t - self.warmup
        if c < 0:
            return True
        if c % self.window == 0:
            growth = self.a1 * relative_change(self.ratios) + self.a2 * relative_change(self.variances)
            most = max(1.0, float(math.floor(self.window * self.p_max)))
            self.s = min(max(self.s * (1.0 + growth), 1.0), most)
            self.prob, self.used = self.s / self.window, 0
            self.budgets.append(self.s)
        left = self.window - c % self.window
        wanted = math.floor(self.s) - self.used
        return (wanted > 0 and self.rng.random() < self.prob) or left <= wanted

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        refresh = self.decide()
        self.t += 1
        self.refreshes.append(refresh)
        g = self.gradient(batch)
        loss = self.loss(batch)
        if not refresh:
            self.j += 1
            return loss, add(g, self.psf, self.beta**self.j) if self.j <= REUSES else g
        g_s = self.gradient(batch, at=self.ascent(g))
        self.psf, self.j = add(g_s, g, -1.0), 0
        self.used += 1
        self.remember(norm(self.psf[-self.last :]), norm(g[-self.last :]))
        return loss, g_s

    def remember(self, size_psf: float, size_g: float) -> None:
        """Files what the refresh before measured, and keeps this one's measurement for the next."""
        if self.measured is not None:
            ratio, size = self.measured
            self.ratios.append(ratio)
            self.norms.append(size)
            self.variances.append(block_variance(self.norms, self.blocks))
        self.measured = (size_psf / (size_g + 1e-12), size_psf)
