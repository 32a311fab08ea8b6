"""Trainable tensors that are not the engine's: met late, and after a backward that the caller has run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hand import close, sgd, square
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lowland
from lowland.core.errors import ParameterError

METHODS = [lowland.SAM(), lowland.SAMPa(), lowland.LookSAM(k=2), lowland.MicroSAM(m=2)]
each = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.kind)


@each
def test_a_head_that_joins_later_is_refused_when_it_joins(method: Any) -> None:
    net, head, x = nn.Linear(3, 2), nn.Linear(2, 2), torch.randn(4, 3)
    joined = False

    def loss(model: Any, b: Any) -> Tensor:
        return (head(model(b)) if joined else model(b)).square().mean(1)

    engine = lowland.Engine(method, net, sgd(net), loss)
    for _ in range(3):
        engine.backward(x)
    joined = True
    with pytest.raises(ParameterError, match=r"head\.bias, head\.weight are not"):
        engine.backward(x)
    assert engine.step == 3
    assert head.weight.grad is None
    head.requires_grad_(False)
    engine.backward(x)


W = nn.Parameter(torch.ones(2, 5))


class Objective:
    def __init__(self) -> None:
        self.scale, self.on = torch.ones((), requires_grad=True), False

    def __call__(self, model: Any, b: Any) -> Tensor:
        found = model(b).square().mean(1)
        return found * self.scale if self.on else found


class Keeping(nn.Module):
    """Has forgotten its ParameterList."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.weights, self.on = nn.Linear(3, 2), [nn.Parameter(torch.ones(2, 2))], False

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) @ self.weights[0] if self.on else self.inner(x)


@each
@pytest.mark.parametrize("way", ["global", "object", "model"])
def test_bare_tensors_that_join_later_are_refused_when_they_join(method: Any, way: str) -> None:
    net, x, objective, on = Keeping(), torch.randn(4, 3), Objective(), False

    def loss(model: Any, b: Any) -> Tensor:
        return ((model(b) @ W.to(b.dtype)) if on else model(b)).square().mean(1)

    chosen = {"global": loss, "object": objective, "model": square}[way]
    engine = lowland.Engine(method, net, sgd(net), chosen)
    for _ in range(3):
        engine.backward(x)
    on = objective.on = net.on = True
    net.on = way == "model"
    with pytest.raises(ParameterError, match="every trainable tensor that the loss reaches must be the engine's"):
        engine.backward(x)
    assert engine.step == 3
    assert [t.grad for t in (W, objective.scale, net.weights[0])] == [None] * 3


@each
@pytest.mark.parametrize("way", ["module", "bare"])
def test_what_a_reentrant_checkpoint_hides_is_refused(method: Any, way: str) -> None:
    net, head, bare, x = nn.Linear(3, 2), nn.Linear(2, 2), torch.ones(2, 2, requires_grad=True), torch.randn(4, 3)
    bare.grad = torch.full((2, 2), 7.0)

    def block(h: Tensor) -> Tensor:
        return head(h) if way == "module" else h @ bare

    def loss(model: Any, b: Any) -> Tensor:
        return checkpoint(block, model(b), use_reentrant=True).square().mean(1)

    engine = lowland.Engine(method, net, sgd(net), loss)
    with pytest.raises(ParameterError, match=r"head\.bias, head\.weight are not|a tensor of shape \(2, 2\) is not"):
        engine.backward(x)
    close([bare.grad], [torch.full((2, 2), 7.0)], 0)
    assert head.weight.grad is None
    assert net.weight.grad is None


@pytest.mark.parametrize("door", ["passes", "adopt", "closure"])
def test_what_a_reentrant_checkpoint_of_the_caller_hides_is_refused(door: str) -> None:
    net, head, x = nn.Linear(3, 2), nn.Linear(2, 2), torch.randn(4, 3)
    head.weight.grad = torch.full((2, 2), 7.0)
    engine = lowland.Engine(lowland.SAM(), net, sgd(net))
    optimizer = lowland.ClosureOptimizer(engine)

    def loss() -> Tensor:
        return checkpoint(head, net(x), use_reentrant=True).square().mean()

    def whole() -> Tensor:
        optimizer.zero_grad()
        found = loss()
        found.backward()
        return found

    def run() -> None:
        if door == "closure":
            optimizer.step(whole)
            return
        for p in engine.passes(x):
            with p:
                p.backward(loss()) if door == "passes" else p.adopt(whole())

    with pytest.raises(ParameterError, match="every trainable tensor that the loss reaches must be the engine's"):
        run()
    close([head.weight.grad], [torch.full((2, 2), 7.0)], 0)
    assert head.bias.grad is None
    assert engine.step == 0


class Foreign:
    def __init__(self) -> None:
        self.head, self.plain = nn.Linear(2, 2), torch.ones(2, requires_grad=True)
        self.head.weight.grad = torch.full((2, 2), 7.0)

    def unchanged(self) -> None:
        close([self.head.weight.grad], [torch.full((2, 2), 7.0)], 0)
        assert self.head.bias.grad is None
        assert self.plain.grad is None


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "module"])
@pytest.mark.parametrize("door", ["closure", *(m.kind for m in METHODS)])
def test_a_refusal_after_the_caller_s_backward_leaves_their_gradients(door: str, plain: bool) -> None:
    net, foreign, x = nn.Linear(3, 2), Foreign(), torch.randn(4, 3)
    method = next((m for m in METHODS if m.kind == door), lowland.SAM())
    engine = lowland.Engine(method, net, sgd(net))

    def loss(batch: Tensor) -> Tensor:
        out = net(batch) * foreign.plain if plain else foreign.head(net(batch))
        found = out.square().mean()
        found.backward()
        return found

    def run() -> None:
        if door == "closure":
            optimizer = lowland.ClosureOptimizer(engine)
            optimizer.step(lambda: (optimizer.zero_grad(), loss(x))[1])
        else:
            for _ in range(2):  # SAMPa's first step is one pass
                for p in engine.passes(x):
                    with p:
                        count = len(p.batch)  # MicroSAM's parts say what they weigh
                        p.adopt(lowland.Loss(loss(p.batch) * count, count), batch=p.batch)

    if plain and door == "SAMPa":
        return  # one pass in a step reaches it: what adds up over steps is the caller's
    with pytest.raises(ParameterError, match="every trainable tensor that the loss reaches must be the engine's"):
        run()
    foreign.unchanged()
    assert engine.step == 0
