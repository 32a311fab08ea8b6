"""Deng, Pang, Zhang, Guo, "Asymptotic Unbiased Sample Sampling to Speed Up Sharpness-Aware Minimization" (AUSAM)."""

from __future__ import annotations

import random

import numpy as np
import torch

from reference.model import Batch
from reference.sampling import part, pick
from reference.twin import Twin
from reference.vectors import Weights, add


class AUSAM(Twin):
    """The paper's method (AAAI 2025, arXiv 2406.08001): SAM on a part of the batch, drawn by how far losses rise.

    An example's score is the mean of `|l1 - l0|` over the times it was drawn; scaled to [fmin, f] over the batch,
    scores are the chances of a draw without replacement. Examples without a score count as the batch's highest.
    """

    def setup(
        self,
        examples: int,
        alpha: float = 0.5,
        fmin: float = 0.1,
        fmax: float = 0.5,
        ramp: int = 0,
        warmup: int = 0,
        seed: int = 0,
    ) -> None:
        self.alpha, self.fmin, self.fmax, self.ramp, self.warmup = alpha, fmin, fmax, ramp, warmup
        self.sums, self.counts = np.zeros(examples), np.zeros(examples)
        self.rng, self.t = random.Random(seed), 0
        self.draws: list[list[int]] = []
        self.spread: list[float] = []  # how far apart the chances were

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        t, self.t = self.t, self.t + 1
        size = len(batch[2])
        count = size if t < self.warmup else part(self.alpha, size)
        chosen = np.arange(size) if count == size else self.draw(self.chances(batch[2], t), count)
        drawn = pick(batch, chosen)
        e = self.ascent(self.gradient(drawn))
        before = self.problem.losses(self.w, drawn)
        rise = np.abs(self.problem.losses(add(self.w, e), drawn) - before)
        for i, r in zip(drawn[2], rise, strict=True):
            if np.isfinite(r):
                self.sums[i] += r
                self.counts[i] += 1
        self.draws.append(sorted(drawn[2]))
        return float(before.mean()), self.gradient(drawn, at=e)

    def chances(self, index: np.ndarray, t: int) -> np.ndarray:
        known = {i: self.sums[i] / self.counts[i] for i in index if self.counts[i]}
        highest = max(known.values(), default=0.0)
        scores = np.array([known.get(i, highest) for i in index])
        f = self.fmin + (self.fmax - self.fmin) * (min(1.0, t / self.ramp) if self.ramp else 1.0)
        width = scores.max() - scores.min()
        scaled = (scores - scores.min()) / width if width > 0 else np.zeros(len(index))
        z = self.fmin + (f - self.fmin) * scaled
        self.spread.append(z.max() / z.min())
        return z

    def draw(self, z: np.ndarray, count: int) -> np.ndarray:
        """The first of so many exponential arrivals with rates z are a draw without replacement, chances ~ z."""
        generator = torch.Generator().manual_seed(self.rng.getrandbits(63))
        uniform = torch.rand(len(z), generator=generator, dtype=torch.float64).numpy()
        arrivals = -np.log1p(-uniform) / z
        return np.argsort(arrivals)[:count]
