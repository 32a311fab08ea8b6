"""The engine's state beside a framework's checkpoint: one file for every rank."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lowland.core import checks
from lowland.core.errors import StateError
from lowland.core.schedule import Schedule, When
from lowland.engine import Engine
from lowland.integrations.refusals import parts_of
from lowland.methods.late import Late

RESUME = ("exact", "cold")


def check_resume(name: str, value: Any) -> None:
    """Refuse what is neither "exact" nor "cold"."""
    checks.one_of(name, value, RESUME)


def path_of(folder: str | os.PathLike[str], rank: int, number: int = 0) -> Path:
    """The file of one rank in a checkpoint's folder, for the engine of this number."""
    return Path(folder) / (f"lowland_{rank}.pt" if number == 0 else f"lowland{number}_{rank}.pt")


def save(engine: Engine, folder: str | os.PathLike[str], rank: int, number: int = 0) -> None:
    """Write the state of this rank's engine; the file gets its name when all of it is written."""
    path = path_of(folder, rank, number)
    path.parent.mkdir(parents=True, exist_ok=True)  # on every rank: another one may be first
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
    told: bool,
    number: int = 0,
) -> None:
    """Let an engine go on where a checkpoint was taken.

    A state that is the same on all ranks is read from the first rank's file where this rank has none, as on more ranks
    than before. One that belongs to a rank is refused there.

    Args:
        engine: The engine.
        folder: The checkpoint's folder.
        rank: This rank's number.
        resume: "cold" lets a method start anew where the checkpoint has no state of it.
        option: How the caller says so.
        told: Whether the framework tells the engine how much of the training is done.
        number: Of the engine, where there are several.

    Raises:
        StateError: The checkpoint has no state though the method keeps something, or has another one.
    """
    own, first = path_of(folder, rank, number), path_of(folder, 0, number)
    path = own if own.exists() else first
    if not path.exists():
        check_missing(engine, str(folder), resume=resume, option=option, told=told)
        return
    engine.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))


def check_missing(engine: Engine, where: str, *, resume: str, option: str, told: bool) -> None:
    """Refuse a checkpoint without the engine's state, where a cold start would be another trajectory.

    Raises:
        StateError: The method keeps something from step to step, or counts steps.
    """
    if resume == "cold" or not keeps(engine, told=told):
        return
    raise StateError(
        f"the checkpoint must hold the state of {engine.method.kind}, which keeps something from step to step or "
        f"counts steps, but {where} has none, as after plain training; resume from a checkpoint that was written with "
        f"the method, or let the method start anew: {option}"
    )


def keeps(engine: Engine, *, told: bool) -> bool:
    """Whether a resume without the engine's state would be another trajectory.

    Args:
        engine: The engine.
        told: Whether the framework tells it how much of the training is done, so that it need not count.
    """
    counting = [part for part in parts_of(engine.method) if isinstance(part, Schedule | When | Late)]
    return bool(engine.memory) or any(not (told and part.needs_progress) for part in counting)


def plain(batch: Any) -> Any:
    """A batch whose mappings are dicts, such as a tokenizer's ``BatchEncoding``, so that it can be cut and saved."""
    if isinstance(batch, Mapping):
        return {key: plain(value) for key, value in batch.items()}
    return batch
