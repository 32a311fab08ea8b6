"""Small problems with hand-written gradients that also exist as torch modules.

Weights are lists of float64 arrays in the order of the module's `parameters()`. A batch is
`(inputs, targets)`, both with the examples along dimension 0, so that it can be cut into shards.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

Weights = list[np.ndarray]
Batch = tuple[np.ndarray, np.ndarray]


def to_torch(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = batch
    return torch.from_numpy(inputs.copy()), torch.from_numpy(targets.copy())


def concatenate(*batches: Batch) -> Batch:
    return np.concatenate([b[0] for b in batches]), np.concatenate([b[1] for b in batches])


def take(batch: Batch, index: np.ndarray) -> Batch:
    return batch[0][index], batch[1][index]


def fill(module: nn.Module, w: Weights) -> nn.Module:
    """Copies the arrays into the module's parameters, in order, and returns the module."""
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), w, strict=True):
            parameter.copy_(torch.from_numpy(np.asarray(value)))
    return module


@dataclass
class MLP:
    """Two layers, tanh in between, softmax cross entropy: `W1, b1, W2, b2`."""

    inputs: int = 5
    hidden: int = 7
    classes: int = 3

    def weights(self, seed: int = 0) -> Weights:
        rng = np.random.default_rng(seed)
        shapes = [(self.hidden, self.inputs), (self.hidden,), (self.classes, self.hidden), (self.classes,)]
        return [rng.normal(0.0, 0.5, shape) for shape in shapes]

    def batch(self, seed: int, size: int = 12) -> Batch:
        rng = np.random.default_rng([7, seed])
        return rng.normal(size=(size, self.inputs)), rng.integers(0, self.classes, size=size)

    def losses(self, w: Weights, batch: Batch) -> np.ndarray:
        return -self._log_p(w, batch[0])[np.arange(len(batch[1])), batch[1]]

    def loss(self, w: Weights, batch: Batch) -> float:
        return float(self.losses(w, batch).mean())

    def gradient(self, w: Weights, batch: Batch) -> Weights:
        x, targets = batch
        at_logits = np.exp(self._log_p(w, x))
        at_logits[np.arange(len(targets)), targets] -= 1.0
        return self.pull_back(w, x, at_logits / len(targets))

    def logits(self, w: Weights, x: np.ndarray) -> np.ndarray:
        return np.tanh(x @ w[0].T + w[1]) @ w[2].T + w[3]

    def pull_back(self, w: Weights, x: np.ndarray, at_logits: np.ndarray) -> Weights:
        """The gradient with respect to the weights of anything that has this gradient at the logits."""
        h = np.tanh(x @ w[0].T + w[1])
        at_hidden = (at_logits @ w[2]) * (1.0 - h**2)
        return [at_hidden.T @ x, at_hidden.sum(0), at_logits.T @ h, at_logits.sum(0)]

    def _log_p(self, w: Weights, x: np.ndarray) -> np.ndarray:
        logits = self.logits(w, x)
        logits = logits - logits.max(1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(1, keepdims=True))

    def module(self, w: Weights) -> nn.Module:
        layers = nn.Sequential(nn.Linear(self.inputs, self.hidden), nn.Tanh(), nn.Linear(self.hidden, self.classes))
        return fill(layers.double(), w)

    def loss_fn(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        inputs, targets = batch
        return nn.functional.cross_entropy(model(inputs), targets, reduction="none")  # (B,)


class OneVector(nn.Module):
    """A module whose only parameter is the vector `w`."""

    def __init__(self, size: int):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size, dtype=torch.float64))


@dataclass
class Quadratic:
    """`1/2 w'Aw - b'w - c_i'w` for example i: `A` is symmetric, the noise `c_i` is the batch's inputs."""

    A: np.ndarray
    b: np.ndarray

    @classmethod
    def random(cls, seed: int, size: int = 4, low: float = 0.0, high: float = 3.0) -> Quadratic:
        """A convex quadratic whose eigenvalues lie between `low` and `high`, the largest at `high`."""
        rng = np.random.default_rng([11, seed])
        basis, _ = np.linalg.qr(rng.normal(size=(size, size)))
        eigenvalues = rng.uniform(low, high, size)
        eigenvalues[-1] = high
        return cls(basis @ np.diag(eigenvalues) @ basis.T, rng.normal(size=size))

    def weights(self, seed: int = 0) -> Weights:
        return [np.random.default_rng([13, seed]).normal(size=len(self.b))]

    def batch(self, seed: int, size: int = 6, noise: float = 1.0) -> Batch:
        rng = np.random.default_rng([17, seed])
        return noise * rng.normal(size=(size, len(self.b))), np.zeros(size)

    def losses(self, w: Weights, batch: Batch) -> np.ndarray:
        return 0.5 * w[0] @ self.A @ w[0] - (self.b + batch[0]) @ w[0]

    def loss(self, w: Weights, batch: Batch) -> float:
        return float(self.losses(w, batch).mean())

    def gradient(self, w: Weights, batch: Batch) -> Weights:
        return [self.A @ w[0] - self.b - batch[0].mean(0)]

    def smoothness(self, batch: Batch) -> float:
        return float(np.linalg.eigvalsh(self.A)[-1])

    def module(self, w: Weights) -> nn.Module:
        return fill(OneVector(len(self.b)), w)

    def loss_fn(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        matrix, vector = torch.from_numpy(self.A), torch.from_numpy(self.b)
        return 0.5 * model.w @ matrix @ model.w - (vector + batch[0]) @ model.w  # (B,)


@dataclass
class Logistic:
    """Logistic regression, `log(1 + exp(-y_i x_i'w))`: convex and smooth, not quadratic."""

    size: int = 4

    def weights(self, seed: int = 0) -> Weights:
        return [np.random.default_rng([19, seed]).normal(size=self.size)]

    def batch(self, seed: int, size: int = 16) -> Batch:
        rng = np.random.default_rng([23, seed])
        x = rng.normal(size=(size, self.size))
        return x, np.where(x[:, 0] + rng.normal(size=size) > 0, 1.0, -1.0)

    def losses(self, w: Weights, batch: Batch) -> np.ndarray:
        return np.logaddexp(0.0, -batch[1] * (batch[0] @ w[0]))

    def loss(self, w: Weights, batch: Batch) -> float:
        return float(self.losses(w, batch).mean())

    def gradient(self, w: Weights, batch: Batch) -> Weights:
        x, y = batch
        weight = -y / (1.0 + np.exp(y * (x @ w[0])))
        return [(weight[:, None] * x).mean(0)]

    def smoothness(self, batch: Batch) -> float:
        x = batch[0]
        return float(np.linalg.eigvalsh(x.T @ x / len(x))[-1] / 4.0)

    def module(self, w: Weights) -> nn.Module:
        return fill(OneVector(self.size), w)

    def loss_fn(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        inputs, targets = batch
        return nn.functional.softplus(-targets * (inputs @ model.w), threshold=50.0)  # (B,)


def parabola() -> Quadratic:
    """The one-dimensional `x^2`."""
    return Quadratic(np.array([[2.0]]), np.array([0.0]))


def flat(size: int = 4) -> Quadratic:
    """A loss linear in the weights: its gradient is the same everywhere."""
    return Quadratic(np.zeros((size, size)), np.zeros(size))
