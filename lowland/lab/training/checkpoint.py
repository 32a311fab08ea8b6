"""Checkpoints that survive a kill at any moment: written whole or not at all, and checked when read.

A checkpoint is a folder, ``checkpoints/step-000001200``:

- tensors, as ``torch.distributed.checkpoint`` writes them: every rank its shards, readable on another number of ranks;
  small ones that are not sharded lie together, see :mod:`lowland.lab.training.packing`;
- ``state.pt``: all else, as ``torch.save`` writes it and ``torch.load(weights_only=True)`` reads it;
- ``weights.safetensors``: the model's weights alone, whole, for other programs;
- ``manifest.json``: the SHA-256 of every file, written last.

It appears under its name only once all of it is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowland.core import shards
from lowland.core.errors import MissingExtraError, StateError
from lowland.lab.training import packing
from lowland.lab.training.packing import Like
from lowland.parallel import World

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
STATE = "state.pt"
WEIGHTS = "weights.safetensors"
PACKED = "packed"  # the key in state.pt under which stands which small tensors lie together
MODEL = "model/"  # what the names of the model's tensors begin with
ALONE = World(0, 1, torch.device("cpu"), None, {})


def save(
    folder: Path,
    state: dict[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    step: int,
    keep: int = 2,
    world: World = ALONE,
) -> Path:
    """Write a checkpoint and forget all but the last ones. All ranks call it.

    Args:
        folder: The run folder; files go to ``checkpoints/`` in it.
        state: What ``torch.load(weights_only=True)`` can read back; that of rank 0 is written.
        tensors: By name, the model's under ``model/``; DTensors are written by the ranks that hold them.
        step: The number of steps taken, which names and orders the checkpoints.
        keep: How many checkpoints to keep, >= 1; with 2 a damaged last one does not end the run.
        world: The ranks.

    Returns:
        The checkpoint's folder.

    Raises:
        StateError: The disk is full, or the folder cannot be written to; earlier checkpoints stay.
    """
    path = folder / FOLDER / f"step-{step:09d}"
    unfinished = path.with_name(f"{path.name}.tmp")
    _together(lambda: _make_room(unfinished), folder, world)
    packs, contents = packing.pack(tensors)
    _together(lambda: _write_tensors(unfinished, packs, world), folder, world, everyone=True)
    whole = {}
    for name, tensor in tensors.items():
        if name.startswith(MODEL):
            found = shards.gathered(tensor)  # a collective
            if world.first:  # cloned, because tied tensors share memory, which safetensors refuses
                whole[name.removeprefix(MODEL)] = found.detach().cpu().contiguous().clone()
    _together(lambda: _complete(unfinished, path, state | {PACKED: contents}, whole, keep), folder, world)
    return path


def _together(act: Callable[[], None], folder: Path, world: World, *, everyone: bool = False) -> None:
    """Do something on rank 0 or on every rank; where it fails on one, all of them raise."""
    failed: BaseException | None = None
    try:
        if everyone or world.first:
            act()
    except BaseException as error:
        if not isinstance(error, Exception) and not hasattr(error, "failures"):  # a CheckpointException is no Exception
            raise
        failed = error
    cause = None if failed is None else _cause(failed)
    told = None if cause is None else _reason(cause) or str(cause)
    reason = next((t for t in world.gather(told) if t is not None), None)
    if failed is not None and cause is not None and _reason(cause) is None:
        raise failed
    if reason is not None:
        raise StateError(
            f"checkpoint must be written to {folder / FOLDER}, but cannot be ({reason}); make room or give rights "
            "there, then go on with --resume"
        )


def _cause(error: BaseException) -> BaseException:
    """What torch.distributed.checkpoint has wrapped, from whichever rank it came."""
    failures = getattr(error, "failures", None)
    return next((each[0] for each in failures.values()), error) if failures else error


def _reason(cause: BaseException) -> str | None:
    """Why a file could not be written; None if it is about something else."""
    if isinstance(cause, OSError):
        return cause.strerror or str(cause)
    # A disk that is full in the middle of a tensor makes torch's writer stumble over its own position.
    return "the disk is full" if "unexpected pos" in str(cause) or "PytorchStreamWriter" in str(cause) else None


def _make_room(unfinished: Path) -> None:
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)


def _write_tensors(place: Path, tensors: Mapping[str, Tensor], world: World) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save as save_all

    writer = FileSystemWriter(place, sync_files=False)  # `_complete` has all files on the disk
    with _quietly():
        save_all(dict(tensors), storage_writer=writer, no_dist=world.size == 1)


def _complete(unfinished: Path, path: Path, state: dict[str, Any], whole: dict[str, Tensor], keep: int) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise MissingExtraError("safetensors", "lab") from None
    torch.save(state, unfinished / STATE)
    save_file(whole, unfinished / WEIGHTS)
    sums = {}
    for file in sorted(unfinished.iterdir()):
        with file.open("rb+") as opened:
            sums[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
            os.fsync(opened.fileno())
    with (unfinished / MANIFEST).open("w") as opened:
        json.dump({"format": 3, "sha256": sums}, opened, indent=1)
        opened.flush()
        os.fsync(opened.fileno())
    _sync(unfinished)
    if path.exists():  # the same step again, as after a return to an earlier checkpoint
        _remove(path)
    os.replace(unfinished, path)  # the name appears only once its content is on the disk
    _sync(path.parent)
    for old in _all(path.parent.parent)[keep:]:
        _remove(old)
    for torn in path.parent.glob("*.tmp"):
        shutil.rmtree(torn, ignore_errors=True)


def load(path: Path, like: Like | None = None, world: World = ALONE) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read one checkpoint, which :func:`check` has found sound.

    Args:
        path: Its folder.
        like: Gives the tensor that one of this name, shape and dtype is read into, such as a DTensor; by default, an
            ordinary one.
        world: The ranks; all of them call this.

    Returns:
        State and tensors.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load as load_all

    state: dict[str, Any] = torch.load(path / STATE, map_location="cpu", weights_only=True)
    reader = FileSystemReader(path)
    make = like or (lambda name, size, dtype: torch.empty(size, dtype=dtype))
    contents = state.pop(PACKED, {})  # checkpoints of 0.1.0 have all tensors apart
    tensors: dict[str, Any] = {}
    for name, held in reader.read_metadata().state_dict_metadata.items():
        kind, size = held.properties.dtype, held.size  # type: ignore[union-attr]
        tensors[name] = torch.empty(size, dtype=kind) if name in contents else make(name, size, kind)
    try:
        with _quietly():
            load_all(tensors, storage_reader=reader, no_dist=world.size == 1)
    except BaseException as error:
        if not hasattr(error, "failures"):
            raise
        raise StateError(
            f"checkpoint {path} cannot be read into this model ({_cause(error)}); see its {STATE}"
        ) from error
    return state, packing.unpack(tensors, contents, make)


def check(path: Path) -> None:
    """Compare a checkpoint's files with their checksums.

    Raises:
        StateError: A file is cut short, overwritten or missing.
    """
    try:
        sums = json.loads((path / MANIFEST).read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise StateError(f"checkpoint {path} is damaged: its {MANIFEST} cannot be read") from None
    for name, expected in sums.items():
        try:
            with (path / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise StateError(f"checkpoint {path} is damaged: {name} cannot be read ({error.strerror})") from None
        if found != expected:
            raise StateError(f"checkpoint {path} is damaged: the checksum of {name} does not match")


def latest(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest sound checkpoint of a run folder, or None where none was ever written.

    Args:
        folder: The run folder.
        warn: Told about every damaged checkpoint that was passed over. Those are renamed to ``*.damaged``, so
            that they do not count among the ones that are kept.

    Raises:
        StateError: There are checkpoints, and all are damaged.
    """
    damaged: list[tuple[Path, str]] = []
    for path in _all(folder) or _unnamed(folder):
        try:
            check(path)
        except StateError as error:
            damaged.append((path, str(error)))
            continue
        for old, reason in damaged:
            shutil.rmtree(target := old.with_name(f"{old.name}.damaged"), ignore_errors=True)
            os.replace(old, target)
            warn(f"{reason}; going on from the previous one, {path.name}")
        return path
    if damaged:
        raise StateError(
            f"all {len(damaged)} checkpoints in {folder / FOLDER} are damaged; remove {folder} and start this run again"
        )
    return None


def _all(folder: Path) -> list[Path]:
    """The checkpoints, newest first."""
    place = folder / FOLDER
    if list(place.glob("step-*.pt")):
        raise StateError(
            f"checkpoints must be folders, but {place} has files of an earlier version of lowland; finish that run "
            f"with the version that began it, or remove {folder}"
        )
    return sorted((p for p in place.glob("step-*") if not p.suffix), reverse=True)


def _unnamed(folder: Path) -> list[Path]:
    """A checkpoint that was complete but had no name yet when its predecessor at the same step was taken away."""
    for path in (folder / FOLDER).glob("step-*.tmp"):
        if path.suffixes == [".tmp"]:
            with suppress(StateError):
                check(path)
                os.replace(path, path.with_suffix(""))
                return [path.with_suffix("")]
    return []


def _remove(path: Path) -> None:
    """Delete a checkpoint: first its name, so that a kill in between leaves none that looks whole."""
    gone = path.with_name(f"{path.name}.old.tmp")
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's notes that a single process is a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _sync(folder: Path) -> None:
    """Have the folder's entries on the disk, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
