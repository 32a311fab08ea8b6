"""Small models and batches that the tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lowland

FEATURES, CLASSES, EXAMPLES = 5, 3, 20


class Net(nn.Module):
    """A small network with every kind of parameter that goes wrong: tied, frozen and unused ones."""

    def __init__(self, *, norm: bool | type[nn.Module] = False, dropout: float = 0.0, odd: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, 8)
        kind = nn.BatchNorm1d if norm is True else norm or nn.Identity
        self.norm = kind(8)
        self.drop = nn.Dropout(dropout)
        self.second = nn.Linear(8, 8)
        self.last = nn.Linear(8, CLASSES)
        if odd:
            self.third = nn.Linear(8, 8)
            self.third.weight = self.second.weight  # tied
            self.frozen = nn.Linear(8, 8).requires_grad_(False)
            self.unused = nn.Linear(2, 2)
        self.odd = odd

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.tanh(self.norm(self.first(x))))
        x = torch.tanh(self.second(x))
        if self.odd:
            x = self.frozen(torch.tanh(self.third(x)))
        return self.last(x)


def net(seed: int = 0, dtype: torch.dtype = torch.float64, **kinds: Any) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(**kinds).to(dtype)


def batch(seed: int = 0, size: int = 8, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets, and where the examples stand in a training set of `EXAMPLES`."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, FEATURES, generator=generator, dtype=dtype)
    targets = torch.randint(CLASSES, (size,), generator=generator)
    return inputs, targets, (seed + torch.arange(size)) % EXAMPLES


def loss_fn(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


class TripError(Exception):
    """Raised by a loss function on purpose."""


class Wire:
    """A loss function that does something special at its n-th call."""

    def __init__(self, at: int, then: Callable[[Tensor], Tensor]) -> None:
        self.at, self.then, self.calls = at, then, 0

    def __call__(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        self.calls += 1
        loss = loss_fn(model, batch)
        return self.then(loss) if self.calls == self.at else loss


def sgd(model: nn.Module, **kinds: Any) -> torch.optim.Optimizer:
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4} | kinds
    return torch.optim.SGD(model.parameters(), **options)


def adamw(model: nn.Module, **kinds: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), **({"lr": 1e-2} | kinds))


def train(engine: lowland.Engine, steps: int, start: int = 0, size: int = 8) -> None:
    """Plain loop: step i uses batch i and a learning rate that changes."""
    dtype = engine.params[0].dtype
    for i in range(start, start + steps):
        for group in engine.optimizer.param_groups:
            group["lr"] = 0.1 / (1 + 0.1 * i)
        engine.backward(batch(i, size, dtype))
        engine.optimizer.step()
        engine.optimizer.zero_grad()


def weights(model: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for t in model.state_dict().values()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    """Bit for bit."""
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def comparable(found: Any) -> Any:
    """Readings without what was reached, because to Batched all parameters count as reached; all else as it is."""
    if not isinstance(found, list | tuple):
        return found
    return [r._replace(reached=None) if hasattr(r, "reached") else r for r in found]
