"""The landscape file: what was written is read, of the right weights only, and a damaged file is refused."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from lowland.core.errors import ArgumentError, DataError
from lowland.runs.landscape import LANDSCAPE_FILE, Curve, read, write


def line(kind: str = "line", weights: str = "a", **more: object) -> Curve:
    values = {"positions": [-1.0, 0.0, 1.0], "values": [2.0, 1.0, 3.0], "settings": {"seed": 0}} | more
    return Curve(kind=kind, weights=weights, **values)  # type: ignore[arg-type]


def test_curves_are_kept_by_kind(tmp_path: Path) -> None:
    assert read(tmp_path, "a") == {}
    plane = line("plane", positions=[0.0, 1.0], values=[[1.0, 2.0], [3.0, math.nan]])
    for curve in (line(), plane, line(settings={"seed": 1})):
        write(tmp_path, curve)
    found = read(tmp_path, "a")
    assert found["line"] == line(settings={"seed": 1})
    assert found["plane"].values == [[1.0, 2.0], [3.0, None]]
    assert read(tmp_path, "b") == {}
    write(tmp_path, line(weights="b"))
    assert set(read(tmp_path, "a")) == {"plane"}
    assert [p.name for p in tmp_path.iterdir()] == [LANDSCAPE_FILE]
    assert json.loads((tmp_path / LANDSCAPE_FILE).read_text())["plane"]["settings"] == {"seed": 0}


@pytest.mark.parametrize("text", ["{", "[]", '{"line": 1}', '{"line": {"kind": "line"}}'])
def test_another_file_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    (tmp_path / LANDSCAPE_FILE).write_text(text)
    with pytest.raises(DataError, match="is not a landscape file"):
        read(tmp_path, "a")
    assert (tmp_path / LANDSCAPE_FILE).read_text() == text


@pytest.mark.parametrize(
    "entry",
    [
        {"positions": 3},
        {"positions": "abc"},
        {"positions": [0.0, 1.0]},
        {"values": [1.0, "2", 3.0]},
        {"values": [1.0, True, 3.0]},
        {"values": {"0": 1.0}},
        {"values": [[1.0], [2.0], [3.0]]},
        {"kind": "plane"},
        {"kind": "plane", "values": [[1.0, 2.0, 3.0]]},
        {"kind": "plane", "values": [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0]]},
        {"settings": []},
        {"weights": 5},
    ],
)
def test_an_edited_curve_is_refused_by_the_name_of_its_file(tmp_path: Path, entry: dict[str, object]) -> None:
    write(tmp_path, line())
    path = tmp_path / LANDSCAPE_FILE
    path.write_text(json.dumps({"line": json.loads(path.read_text())["line"] | entry}))
    with pytest.raises(DataError, match=rf"{LANDSCAPE_FILE} is not a landscape file of lowland: .*; remove it"):
        read(tmp_path, "a")


def test_values_that_are_not_finite_are_none(tmp_path: Path) -> None:
    curve = line("density", positions=[0.0, math.inf, 1.0], values=[math.nan, 1.0, 2.0])
    write(tmp_path, curve)
    assert read(tmp_path, "a")["density"] == line("density", positions=[0.0, None, 1.0], values=[None, 1.0, 2.0])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, line())
    before = (tmp_path / LANDSCAPE_FILE).read_text()

    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ArgumentError, match="cannot be"):
        write(tmp_path, line("plane"))
    assert (tmp_path / LANDSCAPE_FILE).read_text() == before
    assert len(list(tmp_path.iterdir())) == 1
