"""Measures of the final weights of a run, taken after the training, in ``measures.jsonl`` beside the run file.

Each line has one value, its standard error, the settings that it depends on, and the hash of the weights. A value
whose weights are not those of the run's end line is not read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lowland.core.errors import ArgumentError, DataError
from lowland.runs.contents import checked

MEASURES_FILE = "measures.jsonl"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measured value of the weights of one run.

    Args:
        group: The command that measured it, such as ``"sharpness"`` or ``"survival"``.
        name: The key of the value within its group, such as ``"worst-case"``.
        title: The heading of its column, such as ``"worst-case m-sharpness"``; empty if it has no column.
        value: The value; None if it is not finite.
        error: The standard error of the value; None if it is exact or unknown.
        unit: The unit of the displayed value, such as ``"%"``.
        scale: The factor from the stored value to the displayed value.
        settings: What the value depends on besides the weights, such as ``{"rho": 0.05, "m": 128, "examples": 2048}``.
            Only values with equal settings are compared.
        weights: The hash of the measured weights, as ``weights_sha256`` of the run's end line.
        help: One sentence that explains the value to a reader of the table.
    """

    group: str
    name: str
    title: str
    value: float | None
    error: float | None = None
    unit: str = ""
    scale: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: str
    help: str = ""

    @property
    def key(self) -> str:
        """What is compared: group, name and settings as one text."""
        return json.dumps([self.group, self.name, dict(sorted(self.settings.items()))], sort_keys=True)


def append(folder: Path, measures: Iterable[Measure]) -> None:
    """Append measures to the file of a run folder, one flushed line each; an incomplete last line is removed before.

    Raises:
        ArgumentError: The file cannot be written to.
    """
    lines = [json.dumps(_strict(asdict(measure)), ensure_ascii=False, allow_nan=False) for measure in measures]
    path = folder / MEASURES_FILE
    try:
        with path.open("a+b") as file:
            file.seek(0)
            last = file.read().rpartition(b"\n")[2]  # empty if the last line is complete
            if last:  # left in the middle of the file, it would be refused
                file.truncate(file.tell() - len(last))
            file.write("".join(f"{line}\n" for line in lines).encode())
    except OSError as error:
        raise ArgumentError(
            f"runs must be folders that can be written to, but {path} cannot be ({error.strerror}); give rights there"
        ) from None


def read(folder: Path, weights: str) -> tuple[Measure, ...]:
    """Read the measures of a run folder, the last value of each key, in the order in which the keys came first.

    An incomplete last line, of a killed process, is left out.

    Args:
        folder: The run folder.
        weights: The hash of the run's final weights; measures of other weights are left out.

    Raises:
        DataError: A line is not a measure.
    """
    path = folder / MEASURES_FILE
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ()
    found: dict[str, Measure] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            measure = checked(Measure(**json.loads(line)))
            key = measure.key
        except (TypeError, ValueError, AttributeError) as error:
            if number == len(lines):  # a line without a newline at its end
                break
            raise DataError(f"{path}, line {number} is not a measure of lowland: {error}; remove the line") from None
        if measure.weights == weights:
            found[key] = measure
    return tuple(found.values())


def _strict(value: Any) -> Any:
    """Infinity and NaN, which JSON does not have, become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return {k: _strict(v) for k, v in value.items()} if isinstance(value, dict) else value
