"""Section syncs: no backward waits for the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from conformance import TEXTS, WAITING
from problems import loss_fn

from gpu.checks import Check
from gpu.training import OPTIMIZERS, Training, half_precision, here, suits

FIRST, STEPS = 2, 6  # from the third step on; the first ones make what later ones reuse
EXPECTATION = "no backward waits for the GPU, from the third step on"
SEEN = "a backward that waits raises an error here, so that the checks of this section can fail"
READ = ("sampa", "momentum-sam")  # methods that read the optimizer's state


def checks() -> Iterator[Check]:
    """Every method in fp32 and in fp16 with a GradScaler, and those that read the optimizer with all optimizers."""
    for text in TEXTS.values():
        if text in WAITING:
            yield Check(f"{text} waits", partial(_refused, text), SEEN)
            continue
        for half in (False, True):
            yield Check(f"{text} in {'fp16' if half else 'fp32'}", partial(_train, text, "sgd", half), EXPECTATION)
    for text in READ:
        for optimizer in OPTIMIZERS:
            if suits(text, optimizer):
                for half in (False, True):
                    name = f"{text} with {optimizer} in {'fp16' if half else 'fp32'}"
                    yield Check(name, partial(_train, text, optimizer, half), EXPECTATION)


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Where torch waits for the GPU, it raises an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _train(text: str, optimizer: str, half: bool) -> None:
    loss = half_precision(torch.float16) if half else loss_fn
    options = {"scaler": torch.amp.GradScaler(here().type, init_scale=1024.0)} if half else {}
    training = Training(text, optimizer, dtype=torch.float32, dropout=0.1, loss=loss, rng="shared", **options)
    training.run(FIRST).run(STEPS - FIRST, start=FIRST, around=waiting_is_an_error)


def _refused(text: str) -> None:
    try:
        _train(text, "sgd", False)
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
    else:
        raise AssertionError("a method that reads a number of the step was not seen to wait")
