"""Ni, Chiang, Geiping, Goldblum, Wilson, Goldstein, "K-SAM: Sharpness-Aware Minimization at the Speed of SGD"."""

from __future__ import annotations

import numpy as np

from reference.model import Batch
from reference.sampling import part, pick
from reference.twin import Twin
from reference.vectors import Weights


class KSAM(Twin):
    """The rule of the abstract (arXiv 2210.12864): both gradients of SAM on the k examples with the largest losses.

    `k` is a share of the batch where it is a float, a count where it is an int. The loss is the whole batch's.
    """

    def setup(self, k: int | float = 0.5) -> None:
        self.k = k

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        losses = self.problem.losses(self.w, batch)
        count = part(self.k, len(losses)) if isinstance(self.k, float) else min(self.k, len(losses))
        hard = pick(batch, np.argsort(-losses)[:count])
        g = self.gradient(hard)
        return self.loss(batch), self.gradient(hard, at=self.ascent(g))
