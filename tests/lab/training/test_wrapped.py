"""Models that are sharded: containers without a forward are divided by their children, and compute the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lab.training.test_ranks import several
from ranks import on_ranks
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lowland.lab.training.wrapped import wrap
from lowland.parallel import world


class InList(nn.Module):
    """Layers in a list within a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), nn.Linear(4, 2)])

    def forward(self, x: Tensor) -> Tensor:
        first, last = self.layers
        for layer in first:  # type: ignore[union-attr]
            x = torch.tanh(layer(x))
        out: Tensor = last(x)
        return out


class InDict(nn.Module):
    """Layers in a dictionary, beside a container that is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"in": nn.Linear(4, 4), "out": nn.Linear(4, 2)})
        self.none = nn.ModuleList()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers["out"](torch.tanh(self.layers["in"](x)))
        return out


class InParameters(nn.Module):
    """Weights in a list of parameters, which belong to the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(4, 4), torch.randn(2, 4)])
        self.bias = nn.Sequential(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.tanh(self.bias(x) @ self.weights[0].T) @ self.weights[1].T
        return out


def sharded_gradients(make: Callable[[], nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of a model, and those of the same model in shards, gathered."""
    with several(), world("data=2", "cpu") as ranks:
        torch.manual_seed(0)
        model = make()
        alone = make()
        alone.load_state_dict(model.state_dict())
        inputs = torch.randn(6, 4)
        wrapped = wrap(model, ranks, shard=True)
        assert all(isinstance(p, DTensor) for p in wrapped.parameters())
        for net in (wrapped, alone):
            net(inputs).square().sum().backward()
        found = [p.grad.full_tensor() for p in wrapped.parameters()]  # type: ignore[union-attr]
        return found, [p.grad for p in alone.parameters() if p.grad is not None]


@pytest.mark.parametrize("make", [InList, InDict, InParameters])
def test_containers_are_sharded_by_their_children(make: Callable[[], nn.Module]) -> None:
    for found, expected in on_ranks(2, sharded_gradients, make):
        torch.testing.assert_close(found, expected)
