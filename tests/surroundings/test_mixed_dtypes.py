"""Models of several dtypes, with the copy of lists as torch before 2.11 does it on a GPU."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowland
from lowland.core import vec
from lowland.core.at_hand import elsewhere


def one_by_one(targets: Any, sources: Any) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def by_the_first(targets: Any, sources: Any) -> None:
    """What has another dtype than the first tensor becomes garbage."""
    one_by_one(targets, sources)
    for target in targets:
        if target.dtype != targets[0].dtype:
            target.fill_(7)


class Mixed(nn.Module):
    """Parameters and buffers of three dtypes; forward writes the buffers where torch does not count it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 6, dtype=torch.float32), nn.Linear(6, 3, dtype=torch.float64)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(6, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).tanh()
        self.calls.data.add_(1)
        self.mean.data.lerp_(hidden.detach()[0], 0.5)
        return self.last(hidden.double())


def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean(1)


def trained(method: lowland.Method, **options: Any) -> dict[str, Tensor]:
    model = Mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    engine = lowland.Engine(method, model, optimizer, loss_fn, **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        before = vec.clone(engine.params)
        engine.backward(torch.randn(8, 5, generator=generator, dtype=torch.float32))
        assert all(torch.equal(p, b) for p, b in zip(engine.params, before, strict=True))
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


@pytest.mark.parametrize("method", [lowland.SAM(), lowland.SAMPa(), lowland.GSAM()], ids=lambda m: m.kind)
def test_weights_and_buffers_come_back(method: lowland.Method, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_foreach_copy_", one_by_one)
    expected = trained(method)
    assert expected["calls"] == 4
    monkeypatch.setattr(torch, "_foreach_copy_", by_the_first)
    for name, value in trained(method).items():
        assert torch.equal(value, expected[name]), name


class Pure(Mixed):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh().double())


def test_gradients_of_probes_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients(copy: Any) -> list[Tensor]:
        monkeypatch.setattr(torch, "_foreach_copy_", copy)
        model = Pure()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        engine = lowland.Engine(lowland.MicroSAM(m=2), model, optimizer, loss_fn, executor=lowland.Batched())
        engine.backward(torch.ones(8, 5, dtype=torch.float32).cumsum(0))
        return [p.grad for p in model.parameters()]

    for found, expected in zip(gradients(by_the_first), gradients(one_by_one), strict=True):
        assert torch.equal(found, expected)


class Scalars(nn.Module):
    """Parameters of shape () in two dtypes, beside others: torch widens their products with factors of shape ()."""

    def __init__(self, low: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.low = nn.Parameter(torch.tensor(2.0, dtype=low))
        self.first, self.last = nn.Linear(5, 6, dtype=low), nn.Linear(6, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.first(x.to(self.low.dtype)).tanh() * self.low).double()) * self.wide


METHODS = [
    *(lowland.SAM(), lowland.SAMPa(), lowland.LookSAM(), lowland.GSAM(), lowland.WSAM(), lowland.FriendlySAM()),
    *(lowland.VaSSO(), lowland.StableSAM(), lowland.MomentumSAM(), lowland.MicroSAM(m=2), lowland.ESAM()),
    *(lowland.UnifiedSAM(), lowland.LESAM(), lowland.XSAM(), lowland.ASAM(), lowland.SAM(geometry=lowland.Layerwise())),
]


@pytest.mark.parametrize("low", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("branches", [nullcontext, elsewhere])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.kind}-{type(m.geometry).__name__}")
def test_parameters_of_no_dimension_keep_their_dtype(method: lowland.Method, branches: Any, low: torch.dtype) -> None:
    model = Scalars(low)
    rate = torch.tensor(0.1, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, foreach=False)
    engine = lowland.Engine(method, model, optimizer, loss_fn)
    for _ in range(3):
        with branches():
            engine.backward(torch.randn(8, 5))
        assert [p.grad.dtype for p in engine.params] == [p.dtype for p in engine.params]
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("first", [torch.float32, torch.float64])
@pytest.mark.parametrize("branches", [nullcontext, elsewhere])
def test_a_factor_widens_no_tensor_and_a_choice_keeps_all_bits(branches: Any, first: torch.dtype) -> None:
    second = torch.float64 if first == torch.float32 else torch.float32
    v = [torch.tensor(3.0, dtype=first), torch.tensor(1e-3, dtype=second), torch.ones(2, dtype=torch.float32)]
    w = vec.scale(v, -1.0)
    with branches():
        scaled = vec.scale(v, torch.tensor(1.5, dtype=torch.float64))
        assert [t.dtype for t in scaled] == [t.dtype for t in v]
        torch.testing.assert_close(scaled, vec.scale(v, 1.5))
        vec.add_(w, v, torch.tensor(1.0, dtype=torch.float64))
        assert not any(t.any() for t in w)
        for condition, chosen in ((True, v), (False, w)):
            found = vec.where(torch.tensor(condition), v, w)
            assert [t.dtype for t in found] == [t.dtype for t in v]
            assert all(map(torch.equal, found, chosen))
