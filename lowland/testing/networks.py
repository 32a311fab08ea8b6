"""The small network of the checks, with all difficult kinds of parameters, and its batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lowland.core.criterion import Criterion
from lowland.engine import Engine

FEATURES, CLASSES, EXAMPLES = 5, 3, 20


class Network(nn.Module):
    """A small network with all difficult kinds of parameters.

    Args:
        norm: The class of a normalization layer after the first layer; True is BatchNorm, False is none.
        dropout: The dropout rate.
        odd: Add tied, frozen and unused parameters.
    """

    def __init__(self, *, norm: bool | type[nn.Module] = False, dropout: float = 0.0, odd: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 8)
        kind: Any = nn.BatchNorm1d if norm is True else norm or nn.Identity
        self.norm = kind(8)
        self.drop = nn.Dropout(dropout)
        self.second = nn.Linear(8, 8)
        self.last = nn.Linear(8, CLASSES)
        if odd:
            self.third = nn.Linear(8, 8)
            self.third.weight = self.second.weight  # tied
            self.frozen = nn.Linear(8, 8).requires_grad_(False)
            self.unused = nn.Linear(2, 2)
            self._modules["last"] = self._modules.pop("last")  # the output layer stays last, as in most models
        self.odd = odd

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape ``(B, CLASSES)``."""
        x = self.drop(torch.tanh(self.norm(self.first(x))))
        x = torch.tanh(self.second(x))
        if self.odd:
            x = self.frozen(torch.tanh(self.third(x)))
        logits: Tensor = self.last(x)
        return logits


def network(seed: int = 0, dtype: torch.dtype = torch.float64, **kinds: Any) -> Network:
    """Make a :class:`Network` with equal weights at every call."""
    with torch.random.fork_rng(devices=[]):  # without devices= torch initializes every GPU
        torch.default_generator.manual_seed(seed)
        return Network(**kinds).to(dtype)


def examples(seed: int = 0, size: int = 8, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """A random batch: inputs, targets, and the positions of the examples in a training set of ``EXAMPLES``."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, FEATURES, generator=generator, dtype=dtype)
    targets = torch.randint(CLASSES, (size,), generator=generator)
    return inputs, targets, (seed + torch.arange(size)) % EXAMPLES


def losses(model: nn.Module, batch: Any) -> Tensor:
    """One loss per example, shape ``(B,)``."""
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


IN_PARTS = Criterion(
    lambda model, batch: model(batch[0]),
    lambda logits, batch: cross_entropy(logits, batch[1], reduction="none"),
)
"""The same loss function in two parts, for methods that need the outputs."""


def train(engine: Engine, steps: int, start: int = 0, size: int = 8) -> None:
    """Train in a plain loop: step i uses batch i and a decreasing learning rate."""
    dtype = engine.params[0].dtype
    for i in range(start, start + steps):
        for group in engine.optimizer.param_groups:
            group["lr"] = 0.1 / (1 + 0.1 * i)
        engine.backward(examples(i, size, dtype))
        engine.optimizer.step()
        engine.optimizer.zero_grad()
