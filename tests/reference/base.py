"""SGD and Adam(W) as PyTorch documents them, with a preview: the displacement the next step would make."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

import numpy as np

from reference.vectors import Weights


@dataclass
class Base:
    """A base optimizer: `step` moves, `preview` only says where the step would lead."""

    weight_decay: float = 0.0
    maximize: bool = False

    def step(self, w: Weights, g: Weights, lr: float) -> Weights:
        """The new weights; the optimizer's state moves on."""
        raise NotImplementedError

    def preview(self, w: Weights, g: Weights, lr: float) -> Weights:
        """What the step for this gradient would add to the weights; nothing changes."""
        after = copy.deepcopy(self).step(w, g, lr)
        return [a - b for a, b in zip(after, w, strict=True)]

    def _signed(self, g: Weights) -> Weights:
        return [-x for x in g] if self.maximize else list(g)


@dataclass
class SGD(Base):
    """`v = mu v + (1 - dampening) g; w -= lr v`, or `g + mu v` with Nesterov; the first v is g itself."""

    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    buffer: Weights | None = None

    def step(self, w: Weights, g: Weights, lr: float) -> Weights:
        d = [x + self.weight_decay * p for x, p in zip(self._signed(g), w, strict=True)]
        if self.momentum:
            if self.buffer is None:
                self.buffer = [x.copy() for x in d]
            else:
                self.buffer = [
                    self.momentum * v + (1.0 - self.dampening) * x for v, x in zip(self.buffer, d, strict=True)
                ]
            ahead = [x + self.momentum * v for x, v in zip(d, self.buffer, strict=True)]
            d = ahead if self.nesterov else self.buffer
        return [p - lr * x for p, x in zip(w, d, strict=True)]


@dataclass
class Adam(Base):
    """Adam with bias correction; `decoupled` takes the weight decay out of the gradient, as in AdamW."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    amsgrad: bool = False
    decoupled: bool = False
    t: int = 0
    m: Weights = field(default_factory=list)
    v: Weights = field(default_factory=list)
    v_max: Weights = field(default_factory=list)

    def step(self, w: Weights, g: Weights, lr: float) -> Weights:
        beta1, beta2 = self.betas
        g = self._signed(g)
        if self.decoupled:
            w = [p * (1.0 - lr * self.weight_decay) for p in w]
        else:
            g = [x + self.weight_decay * p for x, p in zip(g, w, strict=True)]
        if self.t == 0:
            self.m = [np.zeros_like(p) for p in w]
            self.v = [np.zeros_like(p) for p in w]
            self.v_max = [np.zeros_like(p) for p in w]
        self.t += 1
        self.m = [beta1 * m + (1.0 - beta1) * x for m, x in zip(self.m, g, strict=True)]
        self.v = [beta2 * v + (1.0 - beta2) * x * x for v, x in zip(self.v, g, strict=True)]
        self.v_max = [np.maximum(a, b) for a, b in zip(self.v_max, self.v, strict=True)]
        second = self.v_max if self.amsgrad else self.v
        correct1, correct2 = 1.0 - beta1**self.t, 1.0 - beta2**self.t
        return [
            p - lr / correct1 * m / (np.sqrt(v) / math.sqrt(correct2) + self.eps)
            for p, m, v in zip(w, self.m, second, strict=True)
        ]


def adamw(weight_decay: float = 1e-2, **options: object) -> Adam:
    return Adam(weight_decay=weight_decay, decoupled=True, **options)  # type: ignore[arg-type]
