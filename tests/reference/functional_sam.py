"""Singh, Mobahi, Agarwala, Dauphin, "Avoiding Spurious Sharpness Minimization Broadens Applicability of SAM"."""

from __future__ import annotations

import numpy as np

from reference.model import Batch
from reference.twin import Twin
from reference.vectors import Weights, add


def slope(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The derivative of the mean cross entropy by the logits: `(softmax - onehot) / B`."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(targets)), targets] -= 1.0
    return p / len(targets)


class FunctionalSAM(Twin):
    """The update of the paper (ICML 2025, arXiv 2502.02407): `d = J(w + rho unit(g))^T dL/dF(F(w))`."""

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        g = self.gradient(batch)
        at_logits = slope(self.problem.logits(self.w, batch[0]), batch[1])
        return self.loss(batch), self.problem.pull_back(add(self.w, self.ascent(g)), batch[0], at_logits)
