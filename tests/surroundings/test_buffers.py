"""Buffers and other state that forward writes: once per step, by the pass that reports."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from conformance import ALL, base_for, engine_of, model_for
from hand import close, sgd, square
from problems import batch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as old_spectral_norm

import lowland
from lowland.core.errors import UsageError


def spectral(kind: Any) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(kind(nn.Linear(5, 6)), nn.Tanh(), kind(nn.Linear(6, 1)))


@pytest.mark.parametrize("kind", [parametrizations.spectral_norm, old_spectral_norm])
@pytest.mark.parametrize("method", [lowland.SAM(rho=0), lowland.LookSAM(rho=0, k=2), lowland.MomentumSAM(rho=0)])
def test_spectral_norm_trains_as_the_base_does(kind: Any, method: Any) -> None:
    x = torch.randn(8, 5)
    ours, base = spectral(kind), spectral(kind)
    a = torch.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9)
    b = torch.optim.SGD(base.parameters(), lr=0.1, momentum=0.9)
    engine = lowland.Engine(method, ours, a, square)
    for _ in range(5):
        engine.backward(x)
        square(base, x).mean().backward()
        for optimizer in (a, b):
            optimizer.step()
            optimizer.zero_grad()
    close(ours.state_dict().values(), base.state_dict().values())


@pytest.mark.parametrize("text", [t for t in ALL if not t.startswith(("sam-on", "bisam", "micro-sam"))])
def test_buffers_are_written_once_per_step(text: str) -> None:
    class Queue(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model_for(text)
            self.register_buffer("queue", torch.zeros(12, 5))
            self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
            self.rebound = torch.zeros(())

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                place = int(self.pointer)
                self.queue[[i % 12 for i in range(place, place + 1)]] = x[:1]
                self.pointer += 1
            self.rebound = self.rebound + 1
            return self.inner(x)

    net = Queue()
    kinds: dict[str, Any] = {"amsgrad": True}
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, **kinds) if text == "adasam" else None
    engine = engine_of(text, net, base=lambda m: optimizer or base_for(text)(m, weight_decay=0.0))

    for step in range(4):
        engine.backward(batch(step))
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    assert int(net.pointer) == 4
    assert float(net.rebound) == 4


class Criterion(nn.Module):
    """Group weights that every call moves."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, outputs: Tensor) -> Tensor:
        losses = outputs.square().mean(1) * self.scale.to(outputs.dtype).clone()
        self.scale.mul_(0.9)
        return losses

    def by_model(self, model: Any, batch: Any) -> Tensor:
        return self(model(batch))


CRITERION = Criterion()


def through_a_global(model: Any, batch: Any) -> Tensor:
    return CRITERION(model(batch))


def ways(criterion: Criterion) -> dict[str, Any]:
    class Callable:
        def __init__(self) -> None:
            self.criterion = criterion

        def __call__(self, model: Any, batch: Any) -> Tensor:
            return self.criterion(model(batch))

    return {
        "closure": lambda model, batch: criterion(model(batch)),
        "bound": criterion.by_model,
        "partial": functools.partial(lambda c, model, batch: c(model(batch)), criterion),
        "object": Callable(),
        "default": lambda model, batch, c=criterion: c(model(batch)),
    }


@pytest.mark.parametrize("way", [*ways(CRITERION), "global"])
def test_a_criterion_s_buffers_are_written_once_per_step(way: str) -> None:
    CRITERION.scale.fill_(1)
    criterion = CRITERION if way == "global" else Criterion()
    loss = through_a_global if way == "global" else ways(criterion)[way]
    net, x = nn.Linear(3, 2), torch.randn(4, 3)
    engine = lowland.Engine(lowland.SAM(), net, sgd(net), loss)
    for _ in range(5):
        engine.backward(x)
    assert float(criterion.scale) == pytest.approx(0.9**5, rel=1e-6)  # the global one is in single precision


def test_the_displaced_pass_starts_where_the_step_began() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, 2.0]))
            self.register_buffer("scale", torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            self.scale = self.scale + 1
            return (x * self.w).square() * self.scale

    net, x = Scaled(), torch.tensor([[1.0, 0.5]])
    lowland.Engine(lowland.SAM(rho=0.1), net, sgd(net), lambda m, b: m(b).sum(1)).backward(x)
    g = 2 * 2 * x[0] ** 2 * torch.tensor([1.0, 2.0])
    w = torch.tensor([1.0, 2.0]) + 0.1 * g / g.norm()
    close([net.w.grad], [2 * 2 * x[0] ** 2 * w])  # the scale is 2 in both passes
    assert float(net.scale) == 2


def test_displaced_is_true_where_a_pass_leaves_no_trace() -> None:
    seen: list[bool] = []

    def loss(model: Any, batch: Any) -> Tensor:
        seen.append(lowland.displaced())
        return square(model, batch)

    for method, expected in ((lowland.SAM(), [False, True]), (lowland.SAMPa(), [True, False])):
        net = nn.Linear(3, 2)
        engine = lowland.Engine(method, net, sgd(net), loss)
        seen.clear()
        engine.backward(torch.randn(4, 3))
        assert seen == expected
    assert not lowland.displaced()


def test_a_large_buffer_written_late_is_refused_once() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 2)
            self.register_buffer("large", torch.zeros(70_000))
            self.write = False

        def forward(self, x: Tensor) -> Tensor:
            if self.write:
                self.large.add_(1)
            return self.inner(x)

    net, x = Late(), torch.randn(4, 3)
    engine = lowland.Engine(lowland.SAMPa(), net, sgd(net), square)
    engine.backward(x)
    net.write = True
    with pytest.raises(UsageError, match="large was written for the first time after the first step"):
        engine.backward(x)
    assert engine.step == 1
    before = net.large.clone()
    engine.backward(x)
    close([net.large], [before + 1])
