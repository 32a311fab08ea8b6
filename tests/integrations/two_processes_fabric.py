"""A loop with Lightning's Fabric on two processes; run by torchrun from test_fabric.py."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning", exc_type=(ImportError, RuntimeError))

from lightning import Fabric
from torch import nn
from torch.nn.functional import cross_entropy

import lowland
from integrations import launch
from integrations.loops import net
from integrations.methods import METHODS
from integrations.pl import EPOCHS, by_hand, loader
from integrations.trajectories import apart, sgd

warnings.filterwarnings("ignore", module="lightning")
KINDS = ["sam", "sampa", "looksam", "msam"]


def loss_fn(model: nn.Module, batch: Any) -> Any:
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def ready(model: nn.Module, kind: str) -> Any:
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    fabric = Fabric(accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto")
    fabric.launch()
    wrapped, optimizer = fabric.setup(model, sgd(model))
    return fabric, wrapped, optimizer, lowland.Engine(METHODS[kind], wrapped, optimizer, loss_fn)


def train(kind: str, model: nn.Module, clip: float) -> None:
    fabric, wrapped, optimizer, engine = ready(model, kind)
    for _ in range(EPOCHS):
        for batch in loader():
            engine.backward(batch)
            fabric.clip_gradients(wrapped, optimizer, max_norm=clip)
            optimizer.step()
            optimizer.zero_grad()


def trajectory(kind: str, folder: Path) -> list[Any]:
    model, twin = net(), net()
    train(kind, model, clip=0.05)
    by_hand(kind, twin, clip=0.05, ranks=2)
    return [apart(model, twin), launch.same_on_all_ranks(model)]


def inside_no_sync(folder: Path) -> str:
    fabric, wrapped, _, engine = ready(net(), "sam")
    try:
        with fabric.no_backward_sync(wrapped):
            engine.backward(next(iter(loader())))
    except lowland.LowlandError as error:
        return str(error)
    return "nothing"


CASES: dict[str, Callable[[Path], Any]] = {
    **{kind: partial(trajectory, kind) for kind in KINDS},
    "no_backward_sync": inside_no_sync,
}

if __name__ == "__main__":
    launch.run(CASES)
