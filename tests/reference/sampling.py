"""What twins that choose examples share: shares of a batch, and batches that know where their examples stand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from reference.model import MLP, Batch
from reference.vectors import Weights


def part(share: float, count: int) -> int:
    """How many examples a share of `count` is: rounded down, at least one."""
    return max(1, math.floor(share * count + 1e-9))


def pick(batch: Batch, index: np.ndarray) -> Batch:
    """The examples that `index` names, of all that the batch holds."""
    return tuple(x[index] for x in batch)


@dataclass
class Indexed(MLP):
    """A training set: batches are drawn from it and carry, as a third entry, where their examples stand in it."""

    examples: int = 20

    def batch(self, seed: int, size: int = 12) -> Batch:
        index = np.random.default_rng([37, seed]).permutation(self.examples)[:size]
        return (*pick(super().batch(0, self.examples), index), index)

    def losses(self, w: Weights, batch: Batch) -> np.ndarray:
        return super().losses(w, batch[:2])

    def gradient(self, w: Weights, batch: Batch) -> Weights:
        return super().gradient(w, batch[:2])

    def loss_fn(self, model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return super().loss_fn(model, batch[:2])


@dataclass
class Look:
    """One call of the loss function: which examples it saw, at which weights, and whether for a gradient."""

    examples: list[int]
    w: Weights
    grad: bool


class Watch:
    """A problem's loss function that writes down its calls; `batch` is what the examples are counted in."""

    def __init__(self, problem: MLP, batch: Batch):
        self.problem, self.batch = problem, batch
        self.looks: list[Look] = []

    def __call__(self, model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        rows = [int(np.flatnonzero((self.batch[0] == x).all(1))[0]) for x in batch[0].numpy()]
        self.looks.append(Look(rows, [p.detach().numpy().copy() for p in model.parameters()], torch.is_grad_enabled()))
        return self.problem.loss_fn(model, batch)
