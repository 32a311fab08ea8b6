"""The models and batches of the steps that are measured on two processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowland.core import checks
from lowland.core.errors import ArgumentError
from lowland.lab.models import build

RANKS = 2
CLASSES = 10


@dataclass(frozen=True)
class Case:
    """A model, and a batch of random images.

    Args:
        model: A name that :func:`lowland.lab.models.build` knows.
        batch: Images in a batch, even.
        size: Pixels of an image along each side.
    """

    model: str
    batch: int
    size: int = 32

    def __post_init__(self) -> None:
        checks.integer("batch", self.batch, RANKS, "each process gets half of it")
        if self.batch % RANKS:
            raise ArgumentError(f"batch must be even, but is {self.batch}; each process gets half of it")

    def build(self) -> nn.Module:
        """The model, the same each time."""
        return build(self.model, shape=(3, self.size, self.size), classes=CLASSES, seed=0)

    def data(self) -> tuple[Tensor, Tensor]:
        """The batch, the same each time."""
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(self.batch, 3, self.size, self.size, generator=generator)
        return inputs, torch.randint(CLASSES, (self.batch,), generator=generator)

    def bytes(self) -> int:
        """The size of the parameters in bytes."""
        return sum(p.numel() * p.element_size() for p in self.build().parameters())


CASES: dict[str, Case] = {"resnet20-batch64": Case("resnet20", 64), "resnet56-batch16": Case("resnet56", 16)}
