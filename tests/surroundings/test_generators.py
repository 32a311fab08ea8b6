"""Generators of random numbers that a model or a loss function keeps: one draw per step with ``rng="shared"``."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hand import sgd, square
from torch import Tensor, nn

import lowland

METHODS = [lowland.SAM(), lowland.SAMPa(), lowland.LookSAM(k=1)]
each = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.kind)
KINDS: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.Generator().manual_seed(0),
    "python": lambda: random.Random(0),
    "numpy": lambda: np.random.default_rng(0),
    "legacy": lambda: np.random.RandomState(0),
}


def draw(generator: Any) -> float:
    if isinstance(generator, torch.Generator):
        return float(torch.rand((), generator=generator))
    return float(generator.uniform(0, 1))


class Noisy(nn.Module):
    def __init__(self, generator: Any, drawn: list[float]) -> None:
        super().__init__()
        self.inner, self.generator, self.drawn = nn.Linear(3, 2), generator, drawn

    def forward(self, x: Tensor) -> Tensor:
        self.drawn.append(draw(self.generator))
        return self.inner(x)


@each
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["loss", "model"])
def test_a_generator_of_one_s_own_draws_once_per_step(method: Any, kind: str, where: str) -> None:
    generator, drawn, x = KINDS[kind](), [], torch.randn(4, 3)
    net = Noisy(generator, drawn) if where == "model" else nn.Linear(3, 2)

    def loss(model: Any, batch: Any) -> Tensor:
        drawn.append(draw(generator))
        return square(model, batch)

    engine = lowland.Engine(method, net, sgd(net), square if where == "model" else loss, rng="shared")
    for _ in range(3):
        engine.backward(x)
    other = KINDS[kind]()
    right = [draw(other) for _ in range(3)]
    assert drawn == [n for n in right for _ in range(2)]


@each
def test_a_generator_that_forward_makes_draws_once_per_step(method: Any) -> None:
    drawn: list[float] = []

    class Making(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.generator = nn.Linear(3, 2), None

        def forward(self, x: Tensor) -> Tensor:
            if self.generator is None:
                self.generator = torch.Generator().manual_seed(0)
            drawn.append(draw(self.generator))
            return self.inner(x)

    net, x = Making(), torch.randn(4, 3)
    engine = lowland.Engine(method, net, sgd(net), square, rng="shared")
    for _ in range(3):
        engine.backward(x)
    other = KINDS["torch"]()
    assert drawn == [n for n in [draw(other) for _ in range(3)] for _ in range(2)]
