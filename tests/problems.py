"""Small models and batches that the tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowland import Criterion
from lowland.testing.networks import CLASSES, EXAMPLES, FEATURES, IN_PARTS, Network, examples, losses, network, train

__all__ = ["CLASSES", "EXAMPLES", "FEATURES", "train"]

Net, net, batch, loss_fn, in_parts = Network, network, examples, losses, IN_PARTS


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


class _OutputsError(Exception):
    """Raised where a loss function has called its model."""


def parted(text: str, loss: Callable[..., Any]) -> Any:
    """The loss function of a method: in two parts where the method needs the outputs, else as it is.

    The outputs are what the model returns, which the loss function calls once.
    """
    if "functional-sam" not in text:
        return loss

    def forward(model: Any, batch: Any) -> Any:
        found = []

        def once(*given: Any) -> Any:
            found.append(model(*given))
            raise _OutputsError

        with pytest.raises(_OutputsError):
            loss(once, batch)
        return found[0]

    return Criterion(forward, lambda outputs, batch: loss(lambda *_: outputs, batch))


def sgd(model: nn.Module, **kinds: Any) -> torch.optim.Optimizer:
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4} | kinds
    return torch.optim.SGD(model.parameters(), **options)


def adamw(model: nn.Module, **kinds: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), **({"lr": 1e-2} | kinds))


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
