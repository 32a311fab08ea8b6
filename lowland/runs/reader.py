"""Reads run files: one ``run.jsonl`` per run, one JSON object per line.

The reader accepts the incomplete last line of a killed run and the repeated epochs of a resumed run. It raises a
:class:`~lowland.core.errors.DataError` for any other file that is not a run file.

The reader also accepts files of earlier versions. These files list no metrics, because accuracy was the only metric,
and use the keys ``test_accuracy``, ``test_loss`` and ``train_accuracy``.
"""

from __future__ import annotations

import json
import math
import shlex
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lowland.core.errors import DataError
from lowland.runs import measures
from lowland.runs.file import RUN_FILE
from lowland.runs.record import (
    ACCURACY,
    BestRecord,
    EndRecord,
    EpochRecord,
    MethodRecord,
    MetricRecord,
    RunRecord,
    Values,
)


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

    The runs of a parent folder are sorted by their start time. The search skips empty files (a run killed before its
    first line), and skips files that are not run files with a warning. A run that is named twice is read once.

    Raises:
        DataError: a path holds no run, or a file that was named is not a run file.
    """
    records: dict[Path, RunRecord] = {}
    for path in map(Path, paths):
        if path.is_dir() and not (path / RUN_FILE).is_file():
            path_records = _search(path)
            if not path_records:
                raise DataError(f"no {RUN_FILE} below {path}; name a folder that `lowland` wrote runs into")
            path_records.sort(key=lambda record: (record.time, str(record.path)))
        else:
            path_records = [read(path)]
        for record in path_records:
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
    """The JSON objects of a file, and the numbers of the damaged lines except an incomplete last line."""
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
    config, end, pruned, resumed = lines[0], None, None, 0
    epochs: dict[int, EpochRecord] = {}
    diverged: set[int] = set()  # epochs whose loss was not finite
    messages = [f"line {number} of the run file is damaged and was left out" for number in damaged]
    for line in lines[1:]:
        kind = line.get("kind")
        if kind == "config":
            config = line
        elif kind == "epoch":
            epoch = _epoch(line)
            epochs[epoch.epoch] = epoch
            diverged = diverged | {epoch.epoch} if line.get("train_loss", 0) is None else diverged - {epoch.epoch}
        elif kind == "resumed":
            # drop the epochs after the checkpoint: the resumed run repeats them with other times
            epochs = {n: epoch for n, epoch in epochs.items() if epoch.step <= line["step"]}
            end, pruned, resumed = None, None, resumed + 1
        elif kind == "warning":
            messages.append(str(line["message"]))
        elif kind == "pruned":
            pruned = int(line["epoch"])
        elif kind == "end":
            end = _end(line)
    ordered = tuple(epochs[n] for n in sorted(epochs))
    # Files of earlier versions do not record divergence in the end line.
    if end is not None and ordered and ordered[-1].epoch in diverged:
        end = replace(end, diverged=True)
    taken = () if end is None else measures.read(path.parent, end.weights_sha256)
    return _record(
        path,
        config,
        epochs=ordered,
        resumed=resumed,
        warnings=tuple(messages),
        end=end,
        pruned=pruned,
        measures=taken,
    )


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
        contestant=str(config.get("contestant") or method.get("text") or method["key"]),
        metrics=_metrics(config.get("metrics")),
        select=_select(config.get("select") or "last"),
        recipe=dict(config.get("recipe") or {}),
        noise=dict(config.get("noise") or {}),
        budget=dict(config.get("budget") or {}),
        parameters=None if parameters is None else int(parameters),
        versions=dict(config.get("versions") or {}),
        machine=dict(config.get("machine") or {}),
        validation=float(config.get("validation") or 0.0),
        command=shlex.join(map(str, command)) if isinstance(command, list) else command and str(command),
        # Before trials were marked, the command line told them.
        trial=bool(config.get("trial")) or (isinstance(command, list) and command[:2] == ["lowland", "sweep"]),
        sources={str(name): str(digest) for name, digest in (config.get("sources") or {}).items()},
        **rest,
    )


def _metrics(value: Any) -> tuple[MetricRecord, ...]:
    """The metrics of a config line; accuracy if the line lists none."""
    metrics = tuple(
        MetricRecord(
            name=str(metric["name"]),
            unit=str(metric.get("unit") or ""),
            scale=float(metric.get("scale", 1.0)),
            higher=_flag(metric.get("higher", True)),
        )
        for metric in value or ()
    )
    return metrics or (ACCURACY,)


def _select(value: str) -> Literal["best", "last"]:
    if value == "best":
        return "best"
    if value == "last":
        return "last"
    raise ValueError(f"select must be best or last, but is {value!r}")


def _epoch(line: dict[str, Any]) -> EpochRecord:
    return EpochRecord(
        epoch=int(line["epoch"]),
        step=int(line["step"]),
        train_loss=_number(line.get("train_loss")),
        test=_values(line, "test"),
        train=_values(line, "train"),
        validation=_values(line, "validation"),
        seconds=_number(line.get("seconds")),
        gradients=_number(line.get("gradients")),
        sequential=_number(line.get("sequential")),
    )


def _end(line: dict[str, Any]) -> EndRecord:
    costs = ["seconds", "seconds_per_step", "gradients_per_step", "sequential_per_step"]
    costs += ["weights_per_step", "forwards_per_step", "peak_memory", "m_sharpness"]
    best = line.get("best")
    return EndRecord(
        epochs=int(line["epochs"]),
        step=int(line["step"]),
        test=_values(line, "test"),
        best=best
        and BestRecord(epoch=int(best["epoch"]), test=_values(best, "test"), validation=_values(best, "validation")),
        weights_sha256=str(line.get("weights_sha256") or ""),
        diverged=_flag(line.get("diverged") or False),
        **{name: _number(line.get(name)) for name in costs},
    )


def _values(line: Mapping[str, Any], part: str) -> Values:
    """The metrics on a part of the data; files of earlier versions have one key per metric: ``test_accuracy``."""
    if part in line:
        return {str(name): _number(value) for name, value in (line[part] or {}).items()}
    old = {name: line[f"{part}_{name}"] for name in ("loss", "accuracy") if f"{part}_{name}" in line}
    return {name: _number(value) for name, value in old.items() if (part, name) != ("train", "loss")}


def _number(value: Any) -> float | None:
    """The value as a float; None if the value is absent, null or not finite.

    Raises:
        TypeError: The value is a text, true or false, or another thing that is no number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a measured value must be a number, but one is {value!r}")
    return float(value) if math.isfinite(value) else None


def _flag(value: Any) -> bool:
    """True or false, as it is; the text "false" would count as true.

    Raises:
        TypeError: The value is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"higher and diverged must be true or false, but one is {value!r}")
    return value
