"""Writes the run file ``run.jsonl``, one flushed line at a time; a killed process loses at most its last line."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

from lowland.core.errors import ArgumentError

RUN_FILE = "run.jsonl"


class History(NamedTuple):
    """What a run file records about its run.

    Args:
        config: The last config line; None if there is none.
        end: The end line; None if the run has not finished.
        job: The torchrun job that started or last resumed the run.
    """

    config: dict[str, Any] | None
    end: dict[str, Any] | None
    job: str | None = None


def history(folder: Path) -> History:
    """Read the last config line, the end line and the job from the run file of a folder."""
    config = end = job = None
    for line in _lines(folder / RUN_FILE):
        if line.get("kind") == "config":
            config, end, job = line, None, line.get("job")
        elif line.get("kind") == "resumed":
            end, job = None, line.get("job")
        elif line.get("kind") == "end":
            end = line
    return History(config, end, job)


def planned(folder: Path) -> dict[str, Any] | None:
    """The last choice of a mesh that a run file records; None if its mesh was given."""
    found = None
    for line in _lines(folder / RUN_FILE):
        if line.get("kind") == "planned":
            found = {name: value for name, value in line.items() if name != "kind"}
    return found


class RunFile:
    """Appends lines to a run file.

    Args:
        folder: The run folder; it is created if missing.
        fresh: Overwrite the file. Otherwise append to it; an incomplete last line is removed first.

    Raises:
        ArgumentError: The folder cannot be written to.
    """

    def __init__(self, folder: Path, *, fresh: bool) -> None:
        path = folder / RUN_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists() and not fresh:
                remove_incomplete_line(path)
            self._file = path.open("wb" if fresh else "ab")
        except OSError as error:
            raise ArgumentError(
                f"out must be a folder that can be written to, but {folder} cannot be ({error.strerror}); "
                "choose another --out"
            ) from None

    def write(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Append one line and flush it to the operating system, so that a kill of this process does not lose it.

        Returns:
            The line. Infinity and NaN, which JSON does not have, are replaced by None.
        """
        line: dict[str, Any] = {"kind": kind} | {k: _strict(v) for k, v in fields.items()}
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self._file.flush()
        return line

    def close(self) -> None:
        """Flush the file to the disk and close it."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()


class NoFile(RunFile):
    """A run file that writes nothing, for all ranks but the first."""

    def __init__(self) -> None:
        pass

    def write(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Return the line that the first rank writes."""
        return {"kind": kind} | {k: _strict(v) for k, v in fields.items()}

    def close(self) -> None:
        """Do nothing; no file is open."""


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return []
    lines = []
    for text in texts:
        try:
            value = json.loads(text)
        except ValueError:
            continue
        if isinstance(value, dict):
            lines.append(value)
    return lines


def remove_incomplete_line(path: Path) -> None:
    """Cut a file after its last complete line; a killed process can leave an incomplete one."""
    content = path.read_bytes()
    size = content.rfind(b"\n") + 1  # of the complete lines, in bytes
    if size < len(content):
        os.truncate(path, size)


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _strict(v) for k, v in value.items()}
    return [_strict(v) for v in value] if isinstance(value, list | tuple) else value
