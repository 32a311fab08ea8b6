"""Du et al., "Efficient Sharpness-aware Minimization for Improved Training of Neural Networks" (ESAM)."""

from __future__ import annotations

import random

import numpy as np
import torch

from reference.model import Batch
from reference.sampling import part, pick
from reference.twin import Twin
from reference.vectors import Weights, add, scale


class ESAM(Twin):
    """Algorithm 1 of the paper (ICLR 2022, arXiv 2110.03141), masked weight by weight or, as its code, by tensor.

    `e = rho/beta * m * unit(g)`, then the gradient at `w + e` of the share gamma of examples whose losses rose most.
    By tensor the norm is taken over the kept tensors, whose gradients are all that is known.
    """

    def setup(self, beta: float = 0.6, gamma: float = 0.5, mask: str = "tensor", seed: int = 0) -> None:
        self.beta, self.gamma, self.mask = beta, gamma, mask
        self.rng = random.Random(seed)
        self.kept: list[list[bool]] = []

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        e = self.by_tensor(batch) if self.mask == "tensor" else self.by_element(batch)
        return self.loss(batch), self.gradient(self.sensitive(batch, e), at=e)

    def by_tensor(self, batch: Batch) -> Weights:
        keep = [True] * len(self.w)
        if self.beta < 1:
            keep = [self.rng.random() < self.beta for _ in self.w]
            while not any(keep):
                keep = [self.rng.random() < self.beta for _ in self.w]
        self.kept.append(keep)
        g = [x if k else np.zeros_like(x) for x, k in zip(self.gradient(batch), keep, strict=True)]
        return scale(self.ascent(g), 1.0 / self.beta)

    def by_element(self, batch: Batch) -> Weights:
        e = self.ascent(self.gradient(batch))
        generator = torch.Generator().manual_seed(self.rng.getrandbits(63))
        masks = [torch.empty(x.shape, dtype=torch.float64).bernoulli_(self.beta, generator=generator) for x in e]
        return [m.numpy() * x / self.beta for m, x in zip(masks, e, strict=True)]

    def sensitive(self, batch: Batch, e: Weights) -> Batch:
        """The examples of the second pass."""
        if self.gamma == 1:
            return batch
        rise = self.problem.losses(add(self.w, e), batch) - self.problem.losses(self.w, batch)
        return pick(batch, np.argsort(-rise)[: part(self.gamma, len(rise))])
