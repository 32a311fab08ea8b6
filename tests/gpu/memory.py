"""Section memory: the peak memory of a method's backward beyond plain training, beside its docstring's figure."""

from __future__ import annotations

import gc
import inspect
import re
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import torch
from conformance import TEXTS, method_of
from problems import EXAMPLES, loss_fn, parted
from torch import nn

import lowland
from gpu.checks import Check
from gpu.training import OPTIMIZERS, here, suits, there_are_gpus
from lowland.core.at_hand import elsewhere
from lowland.methods import METHODS
from lowland.planner.memory import LiveTensors

STEPS, FIRST = 14, 2  # the steps, and the first one that is watched: the optimizer's state is there then
ROOM = 0.25  # multiples of P for activations, losses and tables, and for the allocator's rounding
LAYERS, BATCH = 6, 8
EXPECTATION = f"beyond plain training, a backward needs at most the memory of the docstring, and {ROOM} P"


def checks() -> Iterator[Check]:
    """Every method, with SGD and with AdamW."""
    for key, text in TEXTS.items():
        for optimizer in ("sgd", "adamw" if suits(text, "adamw") else "amsgrad"):
            name = f"{text} with {optimizer}, documented: {documented(key)} P"
            yield Check(name, partial(_beyond, text, optimizer), EXPECTATION, documented(key) + ROOM, "P")


def documented(key: str) -> int:
    """The largest multiple of P that a method's docstring states; of a method without a figure, that of another one.

    Methods around others state "the inner method's memory", and the default inner method is SAM; ARSAM states that it
    is VSAM's.
    """
    cost = re.search(r"Cost:(.*?)\n\s*\n", inspect.getdoc(METHODS[key]) or "", re.DOTALL)
    if cost is None:
        raise AssertionError(f"the docstring of {key} has no cost")
    stated = [int(number) for number in re.findall(r"\b(\d+) P\b", cost[1])]
    if stated or "no extra memory" in cost[1]:
        return max(stated, default=0)
    return documented({"late": "sam", "arsam": "vsam"}[key])


def _beyond(text: str, optimizer: str) -> float:
    """The peak of a method's backward minus that of plain training, in multiples of P."""
    plain = _plain_peak(optimizer)
    return _peak(text, optimizer) - plain


@cache
def _plain_peak(optimizer: str) -> float:
    _peak("plain", optimizer)  # the first kernels of a process allocate memory that libraries keep
    peak = _peak("plain", optimizer)
    if peak < 2:
        raise AssertionError(f"weights and gradients need 2 P, but the measured peak is {peak:.3g} P")
    return peak


def _peak(text: str, optimizer: str) -> float:
    """The largest memory that is allocated during a backward, in multiples of P."""
    gc.collect()  # so that nothing of an earlier training is freed meanwhile
    meter = LiveTensors()
    with nullcontext() if there_are_gpus() else meter:
        before = torch.cuda.memory_allocated() if there_are_gpus() else 0
        model = _model()
        base = OPTIMIZERS[optimizer](model.parameters())
        engine = lowland.Engine(method_of(text), model, base, parted(text, loss_fn))
        most = 0
        for number in range(STEPS):
            batch = _batch(number)
            if there_are_gpus():
                torch.cuda.reset_peak_memory_stats()
                engine.backward(batch)
                peak = torch.cuda.max_memory_allocated() - before
            else:
                meter.peak = meter.live
                with elsewhere():
                    engine.backward(batch)
                peak = meter.peak
            most = max(most, peak if number >= FIRST else 0)
            engine.optimizer.step()
            engine.optimizer.zero_grad()
    return most / sum(p.numel() * p.element_size() for p in model.parameters())


def _width() -> int:
    """Entries of a layer; so many on a GPU that the parameters outweigh everything else."""
    return 2048 if there_are_gpus() else 128


def _model() -> nn.Module:
    width = _width()
    hidden = [layer for _ in range(LAYERS) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*hidden, nn.LayerNorm(width), nn.Linear(width, 10)).to(here())


def _batch(step: int) -> Any:
    generator = torch.Generator().manual_seed(step)
    inputs, classes = (
        torch.randn(BATCH, _width(), generator=generator),
        torch.randint(10, (BATCH,), generator=generator),
    )
    positions = (BATCH * step + torch.arange(BATCH)) % EXAMPLES
    return inputs.to(here()), classes.to(here()), positions.to(here())
