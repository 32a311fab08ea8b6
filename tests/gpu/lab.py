"""Section lab: a run of the laboratory is the same after an interruption, and the same the second time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

from gpu.checks import Check
from gpu.training import here
from lowland.lab.budget import Budget
from lowland.lab.config import RunConfig
from lowland.lab.tasks.digits import Digits
from lowland.lab.training import run
from lowland.lab.training.progress import Update

STEPS, EVERY, INTERRUPTED = 46, 20, 30  # of the run, between checkpoints, and when it is interrupted
RESUMED = "an interrupted and resumed run has the weights of an uninterrupted one, bit for bit"
AGAIN = "a second run has the weights of the first one, bit for bit"
MEMORY = "the first run of a process and the second one measure the same peak memory"
RUNS = [(text, model) for model in ("mlp", "convnet") for text in ("plain", "sampa:rho=0.1", "ausam", "sl-sam")]


class StopHereError(Exception):
    """Ends a run in the middle."""


def checks() -> Iterator[Check]:
    """Some methods, whose state is of different kinds, on two models."""
    # The first run of the process comes first, because libraries allocate memory in it.
    for text, model in RUNS:
        yield Check(f"{text}, {model}, peak memory", partial(_memory, text, model), MEMORY, 0, "bytes")
    for text, model in RUNS:
        yield Check(f"{text}, {model}, again", partial(_same, _second, text, model), AGAIN)
        yield Check(f"{text}, {model}, resumed", partial(_same, _resumed, text, model), RESUMED)


def _config(text: str, model: str) -> RunConfig:
    task = Digits()
    return RunConfig(
        task=task,
        model=model,
        method=text,
        seed=0,
        recipe=task.recipe(model),
        budget=Budget(limit=STEPS),
        device=here().type,
        checkpoint_every=EVERY,
    )


@cache
def _whole(text: str, model: str, number: int) -> dict[str, Any]:
    """The end line of an uninterrupted run, the first or the second one."""
    with tempfile.TemporaryDirectory() as folder:
        return run.train(_config(text, model), Path(folder) / "run")


def _second(text: str, model: str) -> dict[str, Any]:
    return _whole(text, model, 2)


def _resumed(text: str, model: str) -> dict[str, Any]:
    def interrupt(update: Update) -> None:
        if update.step >= INTERRUPTED:
            raise StopHereError

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(run, "PROGRESS_SECONDS", 0.0):
        try:
            run.train(_config(text, model), Path(folder) / "run", progress=interrupt)
        except StopHereError:
            return run.train(_config(text, model), Path(folder) / "run", resume=True)
        raise AssertionError("the run was not interrupted")


def _memory(text: str, model: str) -> float:
    """The difference between the peak memory of the first run and of the second."""
    first, second = _whole(text, model, 1), _second(text, model)
    return abs(first["peak_memory"] - second["peak_memory"])


def _same(other: Callable[[str, str], dict[str, Any]], text: str, model: str) -> None:
    """Compare the weights of another run with those of the first one."""
    found, expected = other(text, model)["weights_sha256"], _whole(text, model, 1)["weights_sha256"]
    if found != expected:
        raise AssertionError(f"the weights hash to {found[:12]}, those of the first run to {expected[:12]}")
