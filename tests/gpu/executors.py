"""Section executors: two probes in one pass, and two gradients on two streams of one GPU."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from problems import loss_fn
from torch import Tensor

import lowland
from gpu.checks import NO_GPU, Check
from gpu.timing import MODELS, Step, step_of, subject, times
from gpu.training import Training, difference, half_precision, there_are_gpus

STEPS = 6
MOST = 1e-8
SAME = f"Batched gives the weights of Local in float64, up to {MOST:g}"
FEW = "Batched runs one forward pass for all probes that are asked together"
# How many probes a method asks for together, and how often in a step.
ASKED = {"sampa": (2, 1), "micro-sam:m=4": (4, 2)}


def checks() -> Iterator[Check]:
    """Batched and Local compute the same; on a GPU the times of both, and of two streams, are measured."""
    for text, (width, times_asked) in ASKED.items():
        yield Check(text, partial(_difference, text, width), SAME, MOST)
        yield Check(f"{text}, forward passes", partial(_forwards, text, width), FEW, times_asked)
    missing = "" if there_are_gpus() else NO_GPU
    for case in MODELS:
        yield Check(f"{case}: sampa, Local and Batched", partial(_executors, case), missing=missing)
        yield Check(f"{case}: two gradients, one stream and two", partial(_streams, case), missing=missing)


def _difference(text: str, width: int) -> float:
    found = Training(text, executor=lowland.Batched(width)).run(STEPS)
    return difference(found, Training(text).run(STEPS))


def _forwards(text: str, width: int) -> float:
    """The largest number of forward passes of steps 3 and 5; the others are watched and compared with Local."""
    calls: list[int] = []  # a list of tensors would be state, which Batched refuses

    def counting(model: Any, batch: Any) -> Tensor:
        calls.append(len(calls))
        return loss_fn(model, batch)

    training, numbers = Training(text, executor=lowland.Batched(width), loss=counting), []
    for step in range(STEPS):
        calls.clear()
        training.run(1, start=step)
        numbers.append(len(calls))
    return max(numbers[3::2])


def _executors(case: str) -> dict[str, float]:
    """The times of SAMPa's step with both executors."""
    local = times(step_of(case, "sampa"))
    batched = times(step_of(case, "sampa", executor=lowland.Batched()))
    return {f"Local {k}": v for k, v in local.items()} | {f"Batched {k}": v for k, v in batched.items()}


def _streams(case: str) -> dict[str, float]:
    """The times of the gradients of a model and of a copy of it, one after the other, and on a stream each."""
    default = torch.cuda.current_stream()
    apart = times(_two_gradients(case, [default, default]))
    together = times(_two_gradients(case, [torch.cuda.Stream(), torch.cuda.Stream()]))
    return {f"one stream {k}": v for k, v in apart.items()} | {f"two streams {k}": v for k, v in together.items()}


def _two_gradients(case: str, streams: list[Any]) -> Step:
    """A function that computes the gradients of two models, each on its own stream."""
    subjects, loss = [subject(case) for _ in streams], half_precision(torch.bfloat16)

    def step() -> None:
        here = torch.cuda.current_stream()
        for stream, (model, batch) in zip(streams, subjects, strict=True):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                model.zero_grad()
                loss(model, batch).mean().backward()
        for stream in streams:
            here.wait_stream(stream)

    return step
