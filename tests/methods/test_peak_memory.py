"""The most memory that a step takes beyond a plain step's, in copies of the parameters, on both kinds of branches."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

import lowland
from lowland.core.at_hand import elsewhere
from lowland.methods import make
from lowland.planner.memory import LiveTensors

WIDTH = 256  # so large that tensors are not joined, for which vectors are copied
# SGD with momentum; AdamW, whose own step takes half a copy more than SGD's, so that a method's vectors count less.
PEAKS = {
    "sam": (1, 0.5),
    "sampa": (3, 2.5),
    "looksam": (3, 2.5),
    "micro-sam": (2, 1.5),
    "vsam": (1, 1),
    "gsam": (2, 1.5),
    "wsam": (2, 1.5),
    "async-sam": (2, 1.5),
    "momentum-sam": (1, 0.5),
    "friendly-sam": (4, 3.5),
    "asam": (3, 2.5),
    "unified-sam": (1, 0.5),
    "vasso": (4, 3.5),
    "xsam:every=2": (3, 2.5),
    "logits-sam": (1, 0.5),
}


def net() -> nn.Module:
    layers = [layer for _ in range(4) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def loss_fn(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def peak(text: str, base: type[torch.optim.Optimizer]) -> int:
    with LiveTensors() as meter:
        model = net()
        options = {"momentum": 0.9} if base is torch.optim.SGD else {}
        optimizer = base(model.parameters(), lr=1e-3, **options)
        engine = lowland.Engine(make(text), model, optimizer, loss_fn)
        for _ in range(7):  # a whole cycle of LookSAM
            engine.backward((torch.randn(4, WIDTH), torch.randint(10, (4,))))
            optimizer.step()
            optimizer.zero_grad()
    return meter.peak


@pytest.fixture(scope="module")
def plain() -> dict[type[torch.optim.Optimizer], int]:
    return {base: peak("plain", base) for base in (torch.optim.SGD, torch.optim.AdamW)}


@pytest.mark.parametrize("branches", [nullcontext, elsewhere], ids=["at hand", "elsewhere"])
@pytest.mark.parametrize("text", PEAKS)
def test_peaks(text, branches, plain):
    size = sum(p.numel() * p.element_size() for p in net().parameters())
    with branches():
        found = [(peak(text, base) - plain[base]) / size for base in plain]
    assert found == pytest.approx(list(PEAKS[text]), abs=0.06)
