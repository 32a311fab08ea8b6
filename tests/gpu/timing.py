"""Section timing: the time of a step on the GPU and on the host, beside two bare gradients; nothing is expected."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch

import lowland
from gpu.checks import Check
from gpu.training import OPTIMIZERS, half_precision, here
from lowland.lab.models import build
from lowland.methods import make

# A model that keeps the GPU busy, and one that waits for launches: name and batch size.
MODELS = {"busy": ("wrn-16-4", 256), "waiting": ("resnet20", 32)}
METHODS = (
    ("plain", "sgd"),
    ("sam", "sgd"),
    ("looksam", "sgd"),
    ("sampa", "sgd"),
    ("sampa", "adamw"),
    ("friendly-sam", "sgd"),
    ("gsam", "sgd"),
    ("async-sam", "sgd"),
    ("micro-sam", "sgd"),
)
WARMUP, STEPS, ALONE = 10, 10, 5  # steps without a clock, by the GPU's clock, and by the host's
Step = Callable[[], Any]


def checks() -> Iterator[Check]:
    """Two bare gradients and some methods on both models."""
    for case in MODELS:
        yield Check(f"{case}: two bare gradients", partial(_bare, case))
        for text, optimizer in METHODS:
            yield Check(f"{case}: {text} with {optimizer}", partial(_relative, case, text, optimizer))


def subject(case: str) -> tuple[torch.nn.Module, Any]:
    """The model of a case on the GPU, and a batch."""
    name, size = MODELS[case]
    model = build(name, shape=(3, 32, 32), classes=10, seed=0).to(here(), memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(size, 3, 32, 32, generator=generator).to(here(), memory_format=torch.channels_last)
    classes = torch.randint(10, (size,), generator=generator).to(here())
    return model, (inputs, classes)


@cache
def _bare(case: str) -> dict[str, float]:
    model, batch = subject(case)
    optimizer, loss = OPTIMIZERS["sgd"](model.parameters()), half_precision(torch.bfloat16)

    def step() -> None:
        for _ in range(2):
            optimizer.zero_grad()
            loss(model, batch).mean().backward()
        optimizer.step()

    return times(step)


def _relative(case: str, text: str, optimizer: str) -> dict[str, float]:
    """The times of a method's step, and how many times those of two bare gradients they are."""
    bare, found = _bare(case), times(step_of(case, text, optimizer))
    return found | {f"{name} / bare": found[name] / bare[name] for name in found}


def step_of(case: str, text: str, optimizer: str = "sgd", **options: Any) -> Step:
    """A function that takes a step of a method."""
    model, batch = subject(case)
    base = OPTIMIZERS[optimizer](model.parameters())
    engine = lowland.Engine(make(text), model, base, half_precision(torch.bfloat16), **options)

    def step() -> None:
        base.zero_grad()
        engine.backward(batch)
        base.step()

    return step


def times(step: Step) -> dict[str, float]:
    """Milliseconds of a step: on the GPU in a row of steps, and on the host for one step that finds the GPU idle."""
    for _ in range(WARMUP):
        step()
    torch.cuda.synchronize()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(STEPS):
        step()
    end.record()
    hosts = []
    for _ in range(ALONE):
        torch.cuda.synchronize()
        started = time.perf_counter()
        step()
        hosts.append(1e3 * (time.perf_counter() - started))
    torch.cuda.synchronize()
    return {"GPU ms": begin.elapsed_time(end) / STEPS, "host ms": statistics.median(hosts)}
