"""Trainable tensors that are not the engine's: met late, and after a backward that the caller has run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hand import close, sgd
from torch import Tensor, nn

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
