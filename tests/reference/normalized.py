"""A small network with normalization layers and a hand-written gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from reference.model import MLP, Weights, fill

EPS = 1e-5  # torch's default, inside the root


@dataclass
class Normalized(MLP):
    """Two layers with a normalization of the hidden ones in between: `W1, b1, scale, shift, W2, b2`.

    `kind` is "layer" (over the units of an example, torch's LayerNorm), "group" (over halves of them, GroupNorm)
    or "batch" (over the examples of a unit, BatchNorm in training mode).
    """

    hidden: int = 8
    kind: str = "layer"

    @property
    def normalizes(self) -> list[bool]:
        """Which tensors belong to normalization layers."""
        return [False, False, True, True, False, False]

    def weights(self, seed: int = 0) -> Weights:
        rng = np.random.default_rng([29, seed])
        first, bias, second, last = super().weights(seed)
        around_one, around_zero = rng.normal(1.0, 0.3, self.hidden), rng.normal(0.0, 0.3, self.hidden)
        return [first, bias, around_one, around_zero, second, last]

    def logits(self, w: Weights, x: np.ndarray) -> np.ndarray:
        return self._hidden(w, x)[0] @ w[4].T + w[5]

    def pull_back(self, w: Weights, x: np.ndarray, at_logits: np.ndarray) -> Weights:
        h, normal, deviation = self._hidden(w, x)
        at_shifted = (at_logits @ w[4]) * (1.0 - h**2)
        at_normal = at_shifted * w[2]
        # shifting or stretching a whole cell changes nothing behind it: project both directions out
        at_input = (at_normal - self._means(at_normal) - normal * self._means(at_normal * normal)) / deviation
        return [
            at_input.T @ x,
            at_input.sum(0),
            (at_shifted * normal).sum(0),
            at_shifted.sum(0),
            at_logits.T @ h,
            at_logits.sum(0),
        ]

    def _hidden(self, w: Weights, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        z = x @ w[0].T + w[1]
        centered = z - self._means(z)
        deviation = np.sqrt(self._means(centered**2) + EPS)
        normal = centered / deviation
        return np.tanh(w[2] * normal + w[3]), normal, deviation

    def _means(self, z: np.ndarray) -> np.ndarray:
        """Every entry replaced by the mean of the cell it is normalized with."""
        if self.kind == "batch":
            return np.broadcast_to(z.mean(0), z.shape)
        groups = 1 if self.kind == "layer" else 2
        cells = z.reshape(len(z), groups, -1)
        return np.broadcast_to(cells.mean(2, keepdims=True), cells.shape).reshape(z.shape)

    def module(self, w: Weights) -> nn.Module:
        norms = {"layer": nn.LayerNorm, "group": lambda size: nn.GroupNorm(2, size), "batch": nn.BatchNorm1d}
        layers = nn.Sequential(
            nn.Linear(self.inputs, self.hidden),
            norms[self.kind](self.hidden),
            nn.Tanh(),
            nn.Linear(self.hidden, self.classes),
        )
        return fill(layers.double(), w)


@dataclass
class OnlyNormalization(MLP):
    """Nothing but a scale and a shift of inputs normalized over their features, straight into the loss."""

    inputs: int = 4
    classes: int = 4

    @property
    def normalizes(self) -> list[bool]:
        return [True, True]

    def weights(self, seed: int = 0) -> Weights:
        rng = np.random.default_rng([31, seed])
        return [rng.normal(1.0, 0.3, self.inputs), rng.normal(0.0, 0.3, self.inputs)]

    def logits(self, w: Weights, x: np.ndarray) -> np.ndarray:
        return w[0] * self._normal(x) + w[1]

    def pull_back(self, w: Weights, x: np.ndarray, at_logits: np.ndarray) -> Weights:
        return [(at_logits * self._normal(x)).sum(0), at_logits.sum(0)]

    def _normal(self, x: np.ndarray) -> np.ndarray:
        centered = x - x.mean(1, keepdims=True)
        return centered / np.sqrt((centered**2).mean(1, keepdims=True) + EPS)

    def module(self, w: Weights) -> nn.Module:
        return fill(nn.Sequential(nn.LayerNorm(self.inputs)).double(), w)
