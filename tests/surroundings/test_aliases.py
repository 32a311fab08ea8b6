"""Lists, attributes and variables that hold the model's own weights, or views of them, are no state to put back."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch
from hand import square
from torch import Tensor, nn

import lowland

# The first displaced pass comes after the first step, when tensors are no longer copied whatever their size.
METHODS = [lowland.SAMPa(), lowland.Late(inner=lowland.SAM(rho=0.5), start=0.5), lowland.LookSAM(k=3)]
KEPT = {
    "list": list,
    "tuple": tuple,
    "deque": deque,
    "dict": lambda params: {"w": params[0], "rest": params[1:]},
    "detached": lambda params: [p.detach() for p in params],
    "data": lambda params: [p.data for p in params],
    "views": lambda params: [p.detach().view(-1) for p in params],
    "rows": lambda params: [row for p in params for row in p.detach()],
}


def penalty(kept: Any) -> Tensor:
    tensors = kept.values() if isinstance(kept, dict) else kept
    return sum((penalty(t) if isinstance(t, list) else t.square().sum() for t in tensors), torch.zeros(()))


def train(method: Any, model: nn.Module, loss_fn: Any) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    engine = lowland.Engine(method, model, optimizer, loss_fn, total_steps=10)
    rng = torch.Generator().manual_seed(1)
    for _ in range(10):
        engine.backward(torch.randn(4, 3, generator=rng))
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.kind)
@pytest.mark.parametrize("kind", KEPT)
def test_weights_that_are_kept_elsewhere_change_nothing(method: Any, kind: str) -> None:
    model, other = net(), net()
    kept, graph = KEPT[kind](list(model.parameters())), kind in ("list", "tuple", "deque", "dict")

    def through_what_is_kept(model: Any, batch: Any) -> Tensor:
        return square(model, batch) + penalty(kept)

    def through_the_model(model: Any, batch: Any) -> Tensor:
        return square(model, batch) + penalty([p if graph else p.detach() for p in model.parameters()])

    found, right = train(method, model, through_what_is_kept), train(method, other, through_the_model)
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)  # rows are summed in another order


class Aliased(nn.Module):
    """Its attributes are views of its large weight, and a buffer lies beside the weight in one storage."""

    def __init__(self, views: bool) -> None:
        super().__init__()
        flat = torch.zeros(3 * 40_000 + 1)
        self.weight = nn.Parameter(flat.data[:-1].view(40_000, 3))
        nn.init.normal_(self.weight, generator=torch.Generator().manual_seed(0))
        self.register_buffer("count", flat.data[-1:])
        if views:
            self.flat = self.weight.detach().view(-1)
            self.params = [self.weight]

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return (x @ self.weight.T)[:, :2] + self.count


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.kind)
def test_a_buffer_beside_the_weights_in_one_storage_is_put_back_all_the_same(method: Any) -> None:
    model, other = Aliased(views=True), Aliased(views=False)
    for a, b in zip(train(method, model, square), train(method, other, square), strict=True):
        assert torch.equal(a, b)
    assert model.count.item() == other.count.item() == 10.0
