"""Section ahead: a backward returns before the GPU has begun with it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import torch
from conformance import TEXTS, WAITING

from gpu.checks import Check
from gpu.training import Training, batch_of

WARMUP = 9  # steps; the next one is a SAM step of LookSAM with k = 3
ASLEEP = 500.0  # milliseconds that the GPU sleeps before the step
TRIAL = 10_000_000  # clock cycles, to measure how long they are
EXPECTATION = "backward returns within half of the time that the GPU sleeps before it"
SEEN = "a method that reads a number of the step returns only after the sleep, so that the sleep is real"


def checks() -> Iterator[Check]:
    """Every method that does not read a number of the step, and those that do as a control."""
    for text in TEXTS.values():
        if text in WAITING:
            yield Check(f"{text}, 1 / fraction", lambda t=text: 1 / _fraction(t), SEEN, 1.01)
        else:
            yield Check(text, partial(_fraction, text), EXPECTATION, 0.5, "of the sleep")


def _fraction(text: str) -> float:
    """The time of the host in ``backward``, as a fraction of the time that the GPU sleeps."""
    cycles = int(TRIAL * ASLEEP / _sleep(TRIAL))
    training = Training(text, dtype=torch.float32).run(WARMUP)
    batch = batch_of(WARMUP, training.device, training.dtype)
    torch.cuda.synchronize()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    started = time.perf_counter()
    begin.record()
    torch.cuda._sleep(cycles)
    end.record()
    training.engine.backward(batch)
    host = 1e3 * (time.perf_counter() - started)
    torch.cuda.synchronize()
    return host / begin.elapsed_time(end)


def _sleep(cycles: int) -> float:
    """Milliseconds that a number of clock cycles takes."""
    torch.cuda._sleep(cycles)  # the first one loads the kernel
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    torch.cuda._sleep(cycles)
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)
