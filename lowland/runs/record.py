"""Run files, read back: one ``run.jsonl`` per run, one JSON object per line.

A run that was killed may end in a torn line, and a resumed one repeats epochs; both are ordinary here.
A file that never was a run file is refused with a :class:`~lowland.core.errors.DataError`.
"""

from __future__ import annotations

import json
import math
import shlex
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lowland.core.errors import DataError

RUN_FILE = "run.jsonl"


@dataclass(frozen=True, kw_only=True)
class MethodRecord:
    """The method of a run: its registry key, class, text as given (``sampa:rho=0.1``) and all fields."""

    key: str
    cls: str
    text: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch as measured; seconds and gradients are cumulative, accuracies are fractions."""

    epoch: int
    step: int
    train_loss: float | None
    train_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    seconds: float | None
    gradients: float | None
    sequential: float | None


@dataclass(frozen=True, kw_only=True)
class EndRecord:
    """What a run came to; only a finished run has one."""

    epochs: int
    step: int
    test_accuracy: float | None
    test_loss: float | None
    best_test_accuracy: float | None
    seconds: float | None
    seconds_per_step: float | None
    gradients_per_step: float | None
    sequential_per_step: float | None
    peak_memory: float | None
    m_sharpness: float | None
    weights_sha256: str
    weights_per_step: float | None = None  # gradients, weighed by the share of tensors they are for
    forwards_per_step: float | None = None  # forward passes without a gradient
    diverged: bool = False  # the training broke down: its last loss is no number, or above the first step's


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run: configuration, epochs in order, and its end where it has finished."""

    path: Path
    run: str
    time: str
    task: str
    model: str
    seed: int
    method: MethodRecord
    recipe: Mapping[str, Any]
    noise: Mapping[str, Any]
    budget: Mapping[str, Any]
    parameters: int | None
    versions: Mapping[str, Any]
    machine: Mapping[str, Any]
    command: str | None
    epochs: tuple[EpochRecord, ...]
    resumed: int
    warnings: tuple[str, ...]
    end: EndRecord | None

    @property
    def finished(self) -> bool:
        """Whether the run has reached its end."""
        return self.end is not None


def read(folder_or_file: str | Path) -> RunRecord:
    """Read one run.

    Args:
        folder_or_file: a run folder, or its ``run.jsonl``.

    Raises:
        DataError: the file is missing, or is not a run file.
    """
    path = Path(folder_or_file)
    path = path / RUN_FILE if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"no run file at {path} ({error.strerror}); name a run folder or a {RUN_FILE}") from None
    lines, damaged = _parse(text)
    try:
        return _assemble(path, lines, damaged)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path} is not a run file of lowland: {reason}; name another file") from error


def read_all(paths: Iterable[str | Path]) -> list[RunRecord]:
    """Read many runs: run folders, run files, or parent folders that are searched for them.

    Runs found in a search come in the order in which they were started; an empty file there (a run killed
    before its first line) is passed over, and one that is no run file is left out with a warning. A run named twice is
    read once.

    Raises:
        DataError: a path holds no run, or a file that was named is not a run file.
    """
    records: dict[Path, RunRecord] = {}
    for path in map(Path, paths):
        if path.is_dir() and not (path / RUN_FILE).is_file():
            found = _search(path)
            if not found:
                raise DataError(f"no {RUN_FILE} below {path}; name a folder that `lowland` wrote runs into")
            found.sort(key=lambda record: (record.time, str(record.path)))
        else:
            found = [read(path)]
        for record in found:
            records.setdefault(record.path.resolve(), record)
    return list(records.values())


def _search(folder: Path) -> list[RunRecord]:
    records = []
    for file in sorted(folder.rglob(RUN_FILE)):
        if not file.stat().st_size:
            continue
        try:
            records.append(read(file))
        except DataError as error:
            warnings.warn(f"left out: {error}", stacklevel=3)
    return records


def _parse(text: str) -> tuple[list[dict[str, Any]], list[int]]:
    """The objects of a file and the numbers of damaged lines; a torn last line is neither."""
    lines: list[dict[str, Any]] = []
    damaged: list[int] = []
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    for position, (number, line) in enumerate(numbered, 1):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            lines.append(value)
        elif position < len(numbered):
            damaged.append(number)
    return lines, damaged


def _assemble(path: Path, lines: list[dict[str, Any]], damaged: list[int]) -> RunRecord:
    if not lines or lines[0].get("kind") != "config":
        raise ValueError('its first line is no {"kind": "config", ...}')
    config, end, resumed = lines[0], None, 0
    epochs: dict[int, EpochRecord] = {}
    lost: set[int] = set()  # epochs whose loss was no number
    told = [f"line {number} of the run file is damaged and was left out" for number in damaged]
    for line in lines[1:]:
        kind = line.get("kind")
        if kind == "config":
            config = line
        elif kind == "epoch":
            epoch = _epoch(line)
            epochs[epoch.epoch] = epoch
            lost = lost | {epoch.epoch} if line.get("train_loss", 0) is None else lost - {epoch.epoch}
        elif kind == "resumed":
            # what lies beyond the checkpoint is run again; its old seconds would not fit the new ones
            epochs = {n: epoch for n, epoch in epochs.items() if epoch.step <= line["step"]}
            end, resumed = None, resumed + 1
        elif kind == "warning":
            told.append(str(line["message"]))
        elif kind == "end":
            end = _end(line)
    ordered = tuple(epochs[n] for n in sorted(epochs))
    if end is not None and ordered and ordered[-1].epoch in lost:  # also in files that do not say so themselves
        end = replace(end, diverged=True)
    return _record(path, config, epochs=ordered, resumed=resumed, warnings=tuple(told), end=end)


def _record(path: Path, config: dict[str, Any], **rest: Any) -> RunRecord:
    method, command, parameters = config["method"], config.get("command"), config.get("parameters")
    return RunRecord(
        path=path,
        run=str(config.get("run") or path.parent.name),
        time=str(config.get("time", "")),
        task=str(config["task"]),
        model=str(config["model"]),
        seed=int(config["seed"]),
        method=MethodRecord(
            key=str(method["key"]),
            cls=str(method.get("class", method["key"])),
            text=str(method.get("text") or method["key"]),
            fields=dict(method.get("fields") or {}),
        ),
        recipe=dict(config.get("recipe") or {}),
        noise=dict(config.get("noise") or {}),
        budget=dict(config.get("budget") or {}),
        parameters=None if parameters is None else int(parameters),
        versions=dict(config.get("versions") or {}),
        machine=dict(config.get("machine") or {}),
        command=shlex.join(map(str, command)) if isinstance(command, list) else command and str(command),
        **rest,
    )


def _epoch(line: dict[str, Any]) -> EpochRecord:
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    costs = ("seconds", "gradients", "sequential")
    numbers = dict(_numbers(line, names + costs))
    return EpochRecord(epoch=int(line["epoch"]), step=int(line["step"]), **numbers)


def _end(line: dict[str, Any]) -> EndRecord:
    names = ("test_accuracy", "test_loss", "best_test_accuracy", "seconds", "seconds_per_step")
    costs = ("gradients_per_step", "sequential_per_step", "weights_per_step", "forwards_per_step")
    sha = str(line.get("weights_sha256") or "")
    numbers = dict(_numbers(line, (*names, *costs, "peak_memory", "m_sharpness")))
    return EndRecord(
        epochs=int(line["epochs"]),
        step=int(line["step"]),
        weights_sha256=sha,
        diverged=bool(line.get("diverged")),
        **numbers,
    )


def _numbers(line: dict[str, Any], names: tuple[str, ...]) -> Iterator[tuple[str, float | None]]:
    """The named numbers; what is absent, null or not finite is None."""
    for name in names:
        value = line.get(name)
        number = None if value is None else float(value)
        yield name, number if number is not None and math.isfinite(number) else None
