"""Xie, Latorre, Antonakopoulos, Pethick, Cevher, "Improving SAM Requires Rethinking its Optimization Formulation"."""

from __future__ import annotations

import math

import numpy as np

from reference.model import Batch
from reference.twin import Twin
from reference.vectors import Weights

GAMMA = math.log(math.e - 1.0)  # so that phi(0) = 0


def phi(z: np.ndarray, kind: str, alpha: float) -> np.ndarray:
    """A lower bound of the step from 0 to 1 at z > 0: BiSAM's two choices."""
    if kind == "tanh":
        return np.tanh(alpha * z)
    return 1.0 - np.logaddexp(0.0, GAMMA - z)


def slope(z: np.ndarray, kind: str, alpha: float) -> np.ndarray:
    """The derivative of phi."""
    if kind == "tanh":
        return alpha * (1.0 - np.tanh(alpha * z) ** 2)
    return 1.0 / (1.0 + np.exp(z - GAMMA))


def surrogate(logits: np.ndarray, targets: np.ndarray, mu: float, kind: str, alpha: float) -> np.ndarray:
    """`1/mu log sum_j exp(mu phi(z_j - z_y))` of every example: a smooth count of "is misclassified"."""
    rows = np.arange(len(targets))
    margins = logits - logits[rows, targets][:, None]
    return np.log(np.exp(mu * phi(margins, kind, alpha)).sum(1)) / mu


def surrogate_slope(logits: np.ndarray, targets: np.ndarray, mu: float, kind: str, alpha: float) -> np.ndarray:
    """The derivative of the mean surrogate with respect to the logits."""
    rows = np.arange(len(targets))
    margins = logits - logits[rows, targets][:, None]
    share = np.exp(mu * phi(margins, kind, alpha))
    share /= share.sum(1, keepdims=True)
    result = share * slope(margins, kind, alpha)
    result[rows, targets] -= result.sum(1)  # every margin contains the target's logit, with a minus
    return result / len(targets)


class BiSAM(Twin):
    """The update of the paper (ICML 2024, arXiv 2407.12993): climb on a surrogate of the error, descend on the loss."""

    def setup(self, mu: float = 1.0, alpha: float = 0.1, phi: str = "tanh") -> None:
        self.mu, self.alpha, self.phi = mu, alpha, phi

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        logits = self.problem.logits(self.w, batch[0])
        at_logits = surrogate_slope(logits, batch[1], self.mu, self.phi, self.alpha)
        e = self.ascent(self.problem.pull_back(self.w, batch[0], at_logits))
        return self.loss(batch, at=e), self.gradient(batch, at=e)
