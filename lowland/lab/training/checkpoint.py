"""Checkpoints that survive a kill at any moment: each is written atomically, and verified when read.

A checkpoint is a folder, ``checkpoints/step-000001200``:

- tensors, as ``torch.distributed.checkpoint`` writes them: every rank writes its shards, and any number of ranks can
  read them; small unsharded tensors are packed together, see :mod:`lowland.lab.training.packing`;
- ``state.pt``: all other state, as ``torch.save`` writes it and ``torch.load(weights_only=True)`` reads it;
- ``weights.safetensors``: the model's weights without shards, for other programs;
- ``manifest.json``: the SHA-256 of every file, written last.

The folder gets its name only after all files are on the disk.
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
PACKED = "packed"  # the key in state.pt for the contents of the packs
MODEL = "model/"  # the prefix of the names of the model's tensors
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
    """Write a checkpoint and remove all but the last ``keep`` ones. All ranks must call this.

    Args:
        folder: The run folder; files go to ``checkpoints/`` in it.
        state: Values that ``torch.load(weights_only=True)`` can read; only rank 0 writes its state.
        tensors: The tensors by name, the model's under ``model/``; each rank writes its shards of DTensors.
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
    weights = {}
    for name, tensor in tensors.items():
        if name.startswith(MODEL):
            gathered = shards.gathered(tensor)  # a collective
            if world.first:  # cloned, because tied tensors share memory, which safetensors refuses
                weights[name.removeprefix(MODEL)] = gathered.detach().cpu().contiguous().clone()
    _together(lambda: _complete(unfinished, path, state | {PACKED: contents}, weights, keep), folder, world)
    return path


def _together(act: Callable[[], None], folder: Path, world: World, *, everyone: bool = False) -> None:
    """Call ``act`` on rank 0 or on every rank; if the call fails on one rank, all ranks raise."""
    failure: BaseException | None = None
    try:
        if everyone or world.first:
            act()
    except BaseException as error:
        if not isinstance(error, Exception) and not hasattr(error, "failures"):  # a CheckpointException is no Exception
            raise
        failure = error
    cause = None if failure is None else _cause(failure)
    message = None if cause is None else _reason(cause) or str(cause)
    reason = next((t for t in world.gather(message) if t is not None), None)
    if failure is not None and cause is not None and _reason(cause) is None:
        raise failure
    if reason is not None:
        raise StateError(
            f"checkpoint must be written to {folder / FOLDER}, but cannot be ({reason}); make room or give rights "
            "there, then go on with --resume"
        )


def _cause(error: BaseException) -> BaseException:
    """The original error of any rank that torch.distributed.checkpoint has wrapped."""
    failures = getattr(error, "failures", None)
    return next((each[0] for each in failures.values()), error) if failures else error


def _reason(cause: BaseException) -> str | None:
    """The reason why a file could not be written; None if the error has another cause."""
    if isinstance(cause, OSError):
        return cause.strerror or str(cause)
    # On a disk that fills up inside a tensor, torch's writer complains about its own position.
    return "the disk is full" if "unexpected pos" in str(cause) or "PytorchStreamWriter" in str(cause) else None


def _make_room(unfinished: Path) -> None:
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)


def _write_tensors(place: Path, tensors: Mapping[str, Tensor], world: World) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save as save_all

    writer = FileSystemWriter(place, sync_files=False)  # `_complete` flushes all files to the disk
    with _quietly():
        save_all(dict(tensors), storage_writer=writer, no_dist=world.size == 1)


def _complete(unfinished: Path, path: Path, state: dict[str, Any], weights: dict[str, Tensor], keep: int) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise MissingExtraError("safetensors", "lab") from None
    torch.save(state, unfinished / STATE)
    save_file(weights, unfinished / WEIGHTS)
    sums = {}
    for file in sorted(unfinished.iterdir()):
        with file.open("rb+") as handle:
            sums[file.name] = hashlib.file_digest(handle, "sha256").hexdigest()
            os.fsync(handle.fileno())
    with (unfinished / MANIFEST).open("w") as handle:
        json.dump({"format": 3, "sha256": sums}, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())
    _sync(unfinished)
    if path.exists():  # the run repeats this step after resuming from an earlier checkpoint
        _remove(path)
    os.replace(unfinished, path)  # the name appears only once its content is on the disk
    _sync(path.parent)
    for old in _all(path.parent.parent)[keep:]:
        _remove(old)
    for leftover in path.parent.glob("*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def load(path: Path, like: Like | None = None, world: World = ALONE) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read one checkpoint that has passed :func:`check`.

    Args:
        path: The checkpoint's folder.
        like: Makes the tensor, such as a DTensor, into which a tensor of this name, shape and dtype is read; by
            default, an ordinary tensor.
        world: The ranks; all of them must call this.

    Returns:
        The state and the tensors.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load as load_all

    state: dict[str, Any] = torch.load(path / STATE, map_location="cpu", weights_only=True)
    reader = FileSystemReader(path)
    make = like or (lambda name, size, dtype: torch.empty(size, dtype=dtype))
    contents = state.pop(PACKED, {})  # checkpoints of 0.1.0 have no packs
    tensors: dict[str, Any] = {}
    for name, metadata in reader.read_metadata().state_dict_metadata.items():
        dtype, size = metadata.properties.dtype, metadata.size  # type: ignore[union-attr]
        tensors[name] = torch.empty(size, dtype=dtype) if name in contents else make(name, size, dtype)
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
                actual = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise StateError(f"checkpoint {path} is damaged: {name} cannot be read ({error.strerror})") from None
        if actual != expected:
            raise StateError(f"checkpoint {path} is damaged: the checksum of {name} does not match")


def latest(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest undamaged checkpoint of a run folder; None if the folder has no checkpoint.

    Args:
        folder: The run folder.
        warn: Called with a message for every damaged checkpoint newer than the result. These checkpoints are renamed
            to ``*.damaged``, so that they do not count among the ones that are kept.

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
    """A complete checkpoint without its name, left by a kill between removal of its predecessor and renaming."""
    for path in (folder / FOLDER).glob("step-*.tmp"):
        if path.suffixes == [".tmp"]:
            with suppress(StateError):
                check(path)
                os.replace(path, path.with_suffix(""))
                return [path.with_suffix("")]
    return []


def _remove(path: Path) -> None:
    """Delete a checkpoint: rename it first, so that a kill in between leaves no partial checkpoint."""
    renamed = path.with_name(f"{path.name}.old.tmp")
    shutil.rmtree(renamed, ignore_errors=True)
    os.replace(path, renamed)
    shutil.rmtree(renamed, ignore_errors=True)


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress torch's warnings about a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _sync(folder: Path) -> None:
    """Flush the folder's entries to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
