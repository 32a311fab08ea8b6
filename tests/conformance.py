"""The methods and settings that the conformance tests run, and how they make an engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import Wire, batch, loss_fn, net, sgd, train

import lowland
from lowland.methods import METHODS, make

# Settings under which ten steps see all that a method does.
SHORT = {"vsam": "window=6,blocks=2,warmup=1,beta=0.5", "arsam": "window=6,blocks=2,warmup=1", "looksam": "k=3"}
EXTRA = ["sampa:lam=0", "sampa:lam=1", "sampa:lookahead=raw", "looksam:k=3,geometry=layerwise", "sam:geometry=adaptive"]
ALL = [f"{key}:{SHORT[key]}" if key in SHORT else key for key in METHODS] + EXTRA

every = pytest.mark.parametrize("text", ALL)


def engine_of(text: str, model: Any = None, *, loss: Any = loss_fn, base: Any = sgd, **options: Any) -> lowland.Engine:
    model = net() if model is None else model
    return lowland.Engine(make(text), model, base(model), loss, **options)


def calls_of_step(text: str, step: int) -> int:
    """How many passes a step takes."""
    wire = Wire(0, lambda loss: loss)
    engine = engine_of(text, loss=wire)
    train(engine, step)
    before = wire.calls
    engine.backward(batch(step))
    return wire.calls - before


def vectors_of(engine: lowland.Engine) -> dict[str, list[torch.Tensor]]:
    return {k: [t.clone() for t in engine.memory[k]] for k in engine.vector_keys}
