"""What the tests of guards share: a small network, and engines of every method on it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lowland
from lowland.methods import make
from lowland.planner.costs import REQUIRED

CLOSE = {"rtol": 1e-9, "atol": 1e-11}  # float64; SAM adds 1e-12 to the norm


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))


def data(step: int = 0, size: int = 8):
    g = torch.Generator().manual_seed(step)
    return torch.randn(size, 5, generator=g), torch.randint(3, (size,), generator=g), torch.arange(size) + size * step


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def engine_for(model, method, loss=loss_fn, **options):
    return lowland.Engine(method, model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), loss, **options)


SHORT = {"vsam": "vsam:window=6,blocks=2,warmup=1", "looksam": "looksam:k=3"}


def method_for(key: str):
    return make(SHORT.get(key, key), fill=lambda k: {"examples": 400} if k == "ausam" else REQUIRED.get(k, {}))


def optimizer_for(key: str, model):
    if key == "adasam":
        return torch.optim.Adam(model.parameters(), amsgrad=True)
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def refused(engine, batch, kind, match) -> None:
    before = [p.detach().clone() for p in engine.params]
    with pytest.raises(kind, match=match):
        engine.backward(batch)
    assert all(torch.equal(p, b) for p, b in zip(engine.params, before, strict=True))
    assert all(p.grad is None for p in engine.params)
    assert engine.step == 0
