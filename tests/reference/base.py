"""SGD and Adam(W) as PyTorch documents them, with a preview: the displacement the next step would make.

A tensor whose gradient is None is skipped, as torch skips parameters without `.grad`: it is not decayed, its momentum
rests, and Adam does not count the step for it.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import numpy as np

from reference.vectors import Weights, zeros

Gradients = list[np.ndarray] | list[np.ndarray | None]


@dataclass
class Base:
    """A base optimizer: `step` moves, `preview` only says where the step would lead."""

    weight_decay: float = 0.0
    maximize: bool = False

    def step(self, w: Weights, g: Gradients, lr: float) -> Weights:
        """The new weights; the optimizer's state moves on."""
        self.start(w)
        return [p if x is None else self.move(i, p, x, lr) for i, (p, x) in enumerate(zip(w, g, strict=True))]

    def start(self, w: Weights) -> None:
        """Prepares the state for these weights, unless that has been done."""

    def move(self, i: int, p: np.ndarray, g: np.ndarray, lr: float) -> np.ndarray:
        """Tensor `i` after its step; its part of the state moves on."""
        raise NotImplementedError

    def preview(self, w: Weights, g: Gradients, lr: float) -> Weights:
        """What the step for this gradient would add to the weights; nothing changes."""
        after = copy.deepcopy(self).step(w, g, lr)
        return [a - b for a, b in zip(after, w, strict=True)]


@dataclass
class SGD(Base):
    """`v = mu v + (1 - dampening) g; w -= lr v`, or `g + mu v` with Nesterov; the first v is g itself."""

    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    buffer: list[np.ndarray | None] = field(default_factory=list)

    def start(self, w: Weights) -> None:
        if self.momentum and not self.buffer:
            self.buffer = [None] * len(w)

    def move(self, i: int, p: np.ndarray, g: np.ndarray, lr: float) -> np.ndarray:
        d = (-g if self.maximize else g) + self.weight_decay * p
        if self.momentum:
            v = self.buffer[i]
            v = d.copy() if v is None else self.momentum * v + (1.0 - self.dampening) * d
            self.buffer[i] = v
            d = d + self.momentum * v if self.nesterov else v
        return p - lr * d


@dataclass
class Adam(Base):
    """Adam with bias correction; `decoupled` takes the weight decay out of the gradient, as in AdamW."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    amsgrad: bool = False
    decoupled: bool = False
    t: list[int] = field(default_factory=list)
    m: Weights = field(default_factory=list)
    v: Weights = field(default_factory=list)
    v_max: Weights = field(default_factory=list)

    def start(self, w: Weights) -> None:
        if not self.t:
            self.t = [0] * len(w)
            self.m, self.v, self.v_max = zeros(w), zeros(w), zeros(w)

    def move(self, i: int, p: np.ndarray, g: np.ndarray, lr: float) -> np.ndarray:
        beta1, beta2 = self.betas
        g = -g if self.maximize else g
        if self.decoupled:
            p = p * (1.0 - lr * self.weight_decay)
        else:
            g = g + self.weight_decay * p
        self.t[i] += 1
        self.m[i] = beta1 * self.m[i] + (1.0 - beta1) * g
        self.v[i] = beta2 * self.v[i] + (1.0 - beta2) * g * g
        self.v_max[i] = np.maximum(self.v_max[i], self.v[i])
        second = self.v_max[i] if self.amsgrad else self.v[i]
        correct1, correct2 = 1.0 - beta1 ** self.t[i], 1.0 - beta2 ** self.t[i]
        return p - lr / correct1 * self.m[i] / (np.sqrt(second) / math.sqrt(correct2) + self.eps)


def adamw(weight_decay: float = 1e-2, **options: object) -> Adam:
    return Adam(weight_decay=weight_decay, decoupled=True, **options)  # type: ignore[arg-type]
