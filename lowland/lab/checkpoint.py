"""Checkpoints that survive a kill at any moment: written whole or not at all, and checked when read.

A file is the line ``lowland checkpoint 1 <sha256 of the rest>`` followed by what ``torch.save`` wrote.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lowland.errors import StateError

FOLDER = "checkpoints"
MAGIC = b"lowland checkpoint 1 "
_HEADER = len(MAGIC) + 64 + 1  # the checksum in hexadecimal and a line feed


def save(folder: Path, state: dict[str, Any], *, step: int, keep: int = 2) -> Path:
    """Write a checkpoint and forget all but the last ones.

    Args:
        folder: The run folder; files go to ``checkpoints/`` in it.
        state: What ``torch.load(weights_only=True)`` can read back: tensors, numbers, text, containers.
        step: The number of steps taken, which names and orders the files.
        keep: How many checkpoints to keep, >= 1; with 2 a damaged last one does not end the run.

    Returns:
        The file.

    Raises:
        StateError: The disk is full, or the folder cannot be written to; earlier checkpoints stay.
    """
    try:
        return _save(folder, state, step, keep)
    except OSError as error:
        raise StateError(
            f"checkpoint must be written to {folder / FOLDER}, but cannot be ({error.strerror or error}); make room "
            "or give rights there, then go on with --resume"
        ) from None


def _save(folder: Path, state: dict[str, Any], step: int, keep: int) -> Path:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"step-{step:09d}.pt"
    unfinished = place / f"{path.name}.tmp"
    with unfinished.open("wb") as file:
        file.write(MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)  # the name appears only once its content is on the disk
    _sync(place)
    for old in _files(folder)[keep:]:
        old.unlink()
    for torn in place.glob("*.tmp"):
        torn.unlink()
    return path


def load(path: Path) -> dict[str, Any]:
    """Read one checkpoint.

    Raises:
        StateError: The file is cut short, overwritten, or no checkpoint.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StateError(f"checkpoint {path} cannot be read ({error.strerror})") from None
    header, payload = content[:_HEADER], content[_HEADER:]
    if not header.startswith(MAGIC):
        raise StateError(f"checkpoint {path} is damaged: it does not begin as one")
    if hashlib.sha256(payload).hexdigest().encode() != header[len(MAGIC) :].strip():
        raise StateError(f"checkpoint {path} is damaged: its checksum does not match its {len(payload)} bytes")
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state


def latest(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest sound checkpoint of a run folder, or None where none was ever written.

    Args:
        folder: The run folder.
        warn: Told about every damaged checkpoint that was passed over. Those are renamed to ``*.damaged``, so
            that they do not count among the ones that are kept.

    Raises:
        StateError: There are checkpoints, and all are damaged.
    """
    damaged: list[tuple[Path, str]] = []
    for path in _files(folder):
        try:
            state = load(path)
        except StateError as error:
            damaged.append((path, str(error)))
            continue
        for old, reason in damaged:
            os.replace(old, old.with_name(f"{old.name}.damaged"))
            warn(f"{reason}; going on from the previous one, {path.name}")
        return state
    if damaged:
        raise StateError(
            f"all {len(damaged)} checkpoints in {folder / FOLDER} are damaged; remove {folder} and start this run again"
        )
    return None


def remove(folder: Path) -> None:
    """Delete a run folder's checkpoints and what they left behind."""
    for path in (folder / FOLDER).glob("step-*.pt*"):
        path.unlink()


def _files(folder: Path) -> list[Path]:
    """The checkpoints, newest first."""
    return sorted((folder / FOLDER).glob("step-*.pt"), reverse=True)


def _sync(folder: Path) -> None:
    """Have the folder's entry for the new name on the disk, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
