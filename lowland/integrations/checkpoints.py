"""Saves and loads the engine's state in the folder of a framework's checkpoint, one file for each rank."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lowland.core import checks
from lowland.core.errors import StateError
from lowland.core.schedule import Schedule, When, after
from lowland.engine import Engine
from lowland.integrations.refusals import parts_of
from lowland.methods.late import Late
from lowland.methods.unified_sam import UnifiedSAM

RESUME = ("exact", "cold")


def check_resume(name: str, value: Any) -> None:
    """Refuse a value other than "exact" and "cold".

    Args:
        name: The name of the argument.
        value: Its value.
    """
    checks.one_of(name, value, RESUME)


def path_of(folder: str | os.PathLike[str], rank: int, number: int = 0) -> Path:
    """The file of one rank and one engine in a checkpoint's folder; ``number`` counts the engines of an accelerator."""
    return Path(folder) / (f"lowland_{rank}.pt" if number == 0 else f"lowland{number}_{rank}.pt")


def save(engine: Engine, folder: str | os.PathLike[str], rank: int, number: int = 0) -> None:
    """Write the state of this rank's engine to a temporary file, and rename the file when it is complete."""
    path = path_of(folder, rank, number)
    path.parent.mkdir(parents=True, exist_ok=True)  # on every rank, because any rank may be the first
    unfinished = path.with_suffix(".tmp")
    torch.save(engine.state_dict(), unfinished)
    os.replace(unfinished, path)


def load(
    engine: Engine,
    folder: str | os.PathLike[str],
    rank: int,
    *,
    resume: str,
    option: str,
    knows_progress: bool,
    number: int = 0,
) -> None:
    """Load an engine's state from a checkpoint.

    A rank without a file, as after a resume on more ranks, reads the first rank's file. The engine refuses that state
    if it differs between ranks.

    Args:
        engine: The engine.
        folder: The checkpoint's folder.
        rank: This rank's number.
        resume: "exact" refuses a checkpoint without the method's state; "cold" starts the method anew.
        option: The caller's code for "cold", for messages.
        knows_progress: Whether the framework sets the completed fraction of the training.
        number: The engine's number, if there are several.

    Raises:
        StateError: The checkpoint has no state of a method that has state, or the state of another method.
    """
    own, first = path_of(folder, rank, number), path_of(folder, 0, number)
    path = own if own.exists() else first
    if not path.exists():
        check_missing(engine, str(folder), resume=resume, option=option, knows_progress=knows_progress)
        return
    engine.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))


def check_missing(engine: Engine, where: str, *, resume: str, option: str, knows_progress: bool) -> None:
    """Refuse a checkpoint without the engine's state if a cold start would change the trajectory.

    Raises:
        StateError: The method has memory or counts steps.
    """
    if resume == "cold" or not keeps(engine, knows_progress=knows_progress):
        return
    raise StateError(
        f"the checkpoint must hold the state of {engine.method.kind}, which keeps something from step to step or "
        f"counts steps, but {where} has none, as after plain training; resume from a checkpoint that was written with "
        f"the method, or let the method start anew: {option}"
    )


def keeps(engine: Engine, *, knows_progress: bool) -> bool:
    """Whether a resume without the engine's state would change the trajectory.

    Args:
        engine: The engine.
        knows_progress: Whether the framework sets the completed fraction of the training, so that schedules by it do
            not count steps.
    """
    return bool(engine.memory) or any(_counts_steps(part, knows_progress) for part in parts_of(engine.method))


def _counts_steps(part: Any, knows_progress: bool) -> bool:
    """Whether a method, apart from the methods inside it, or a schedule or a condition of it, counts steps."""
    if isinstance(part, UnifiedSAM):
        return isinstance(part.lam, str)  # a function of the step's number
    if isinstance(part, Late) and part.start is not None:
        part = after(part.start, part.total)  # the method inside is a part of its own
    return isinstance(part, Schedule | When) and not (knows_progress and part.needs_progress)


def plain(batch: Any) -> Any:
    """A batch with its mappings, such as a tokenizer's ``BatchEncoding``, as dicts, which can be cut and saved."""
    if isinstance(batch, Mapping):
        return {key: plain(value) for key, value in batch.items()}
    return batch
