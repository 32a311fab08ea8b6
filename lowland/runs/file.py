"""The run file ``run.jsonl``: written line by line, so that a kill costs at most the last one."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

from lowland.core.errors import ArgumentError

RUN_FILE = "run.jsonl"


class History(NamedTuple):
    """What a run folder tells about its run."""

    config: dict[str, Any] | None
    end: dict[str, Any] | None
    job: str | None = None  # of torchrun, that began it or went on last


def history(folder: Path) -> History:
    """The last config line and, where the run has finished, its end line."""
    config = end = job = None
    for line in _lines(folder / RUN_FILE):
        if line.get("kind") == "config":
            config, end, job = line, None, line.get("job")
        elif line.get("kind") == "resumed":
            end, job = None, line.get("job")
        elif line.get("kind") == "end":
            end = line
    return History(config, end, job)


class RunFile:
    """Appends to a run file.

    Args:
        folder: The run folder; it is made.
        fresh: Begin anew. Otherwise go on after the last whole line; a torn one is cut off.

    Raises:
        ArgumentError: Nothing can be written there.
    """

    def __init__(self, folder: Path, *, fresh: bool) -> None:
        path = folder / RUN_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists() and not fresh:
                _cut_torn_line(path)
            self._file = path.open("wb" if fresh else "ab")
        except OSError as error:
            raise ArgumentError(
                f"out must be a folder that can be written to, but {folder} cannot be ({error.strerror}); "
                "choose another --out"
            ) from None

    def write(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Append one line and hand it to the system, which keeps it even if this process is killed.

        Returns:
            The line, without numbers that JSON does not know: those become None.
        """
        line: dict[str, Any] = {"kind": kind} | {k: _strict(v) for k, v in fields.items()}
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self._file.flush()
        return line

    def close(self) -> None:
        """Have everything on the disk."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()


class NoFile(RunFile):
    """The run file of a rank that does not write."""

    def __init__(self) -> None:
        pass

    def write(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The line that another rank writes."""
        return {"kind": kind} | {k: _strict(v) for k, v in fields.items()}

    def close(self) -> None:
        """Nothing is open."""


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return []
    found = []
    for text in texts:
        try:
            value = json.loads(text)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _cut_torn_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _strict(v) for k, v in value.items()}
    return [_strict(v) for v in value] if isinstance(value, list | tuple) else value
