"""Curves of the loss around the final weights of a run, for figures, in ``landscape.json`` beside the run file.

The file has one entry for each kind of curve: the spectral density of the Hessian, slices along a random line and in a
random plane, and the line from the baseline's weights. An entry has its settings and the hash of the weights. An entry
whose weights are not those of the run's end line is not read.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lowland.core.errors import ArgumentError, DataError
from lowland.runs.contents import checked, fits

LANDSCAPE_FILE = "landscape.json"
Kind: TypeAlias = Literal["density", "line", "plane", "between"]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Values over one axis, or over two axes with equal positions.

    Args:
        kind: ``density``, ``line``, ``plane`` or ``between``.
        positions: The positions on the axis; eigenvalues for a density; None if not finite.
        values: The values at the positions, for a plane a list for each position of the first axis; None if not finite.
        settings: What the values depend on besides the weights.
        weights: The hash of the weights, as ``weights_sha256`` of the run's end line.
    """

    kind: str
    positions: list[float | None]
    values: list[Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: str


def write(folder: Path, curve: Curve) -> None:
    """Add a curve to the file of a run folder, in the place of an earlier one of its kind.

    The file is replaced as a whole, so that a killed process leaves the old one.

    Raises:
        ArgumentError: The file cannot be written.
        DataError: The file there is not one of lowland.
    """
    path = folder / LANDSCAPE_FILE
    entries = _entries(path) | {curve.kind: _strict(asdict(curve))}
    draft = ""
    try:
        handle, draft = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(entries, file, allow_nan=False)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(draft, 0o666 & ~mask)  # only the owner can read a file of mkstemp
        os.replace(draft, path)
    except OSError as error:
        raise ArgumentError(
            f"runs must be folders that can be written to, but {path} cannot be ({error.strerror}); give rights there"
        ) from None
    finally:
        if draft:
            Path(draft).unlink(missing_ok=True)


def read(folder: Path, weights: str) -> dict[str, Curve]:
    """Read the curves of a run folder by kind; empty without a file.

    Args:
        folder: The run folder.
        weights: The hash of the run's final weights; curves of other weights are left out.

    Raises:
        DataError: The file is not one of lowland.
    """
    path = folder / LANDSCAPE_FILE
    try:
        curves = {kind: _shaped(checked(Curve(**entry))) for kind, entry in _entries(path).items()}
    except TypeError as error:
        raise DataError(f"{path} is not a landscape file of lowland: {error}; remove it") from None
    return {kind: curve for kind, curve in curves.items() if curve.weights == weights}


def _entries(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a landscape file of lowland: {error}; remove it") from None
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise DataError(f"{path} is not a landscape file of lowland: it holds no entries by name; remove it")
    return entries


def _shaped(curve: Curve) -> Curve:
    """The curve, if it has a value for every position.

    Raises:
        TypeError: It has not.
    """
    rows = curve.values if curve.kind == "plane" else [curve.values]
    if not all(fits(row, list[float | None]) for row in rows):
        raise TypeError(f"the values of {curve.kind!r} must be lists of numbers")
    if any(len(each) != len(curve.positions) for each in [curve.values, *rows]):
        raise TypeError(f"{curve.kind!r} must have as many values as positions")
    return curve


def _strict(value: Any) -> Any:
    """Infinity and NaN, which JSON does not have, become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _strict(v) for k, v in value.items()}
    return [_strict(v) for v in value] if isinstance(value, list) else value
