"""Figures of landscapes: which curves are drawn, and that the page and the export have them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from made_runs import WriteRun

from lowland.report import export, read_all, summarize, write_page
from lowland.report.drawing import looks
from lowland.report.landscapes import Drawn, landscapes
from lowland.runs.landscape import Curve, write

SHA = "0123456789abcdef" * 4
GRID = [-1.0, -0.5, 0.0, 0.5, 1.0]


def add(folder: Path, kind: str = "line", height: float = 1.0, weights: str = SHA, **settings: Any) -> None:
    line = [height * (0.1 + x * x) for x in GRID]
    values: list[Any] = [[a + b for b in line] for a in line] if kind == "plane" else line
    given = {"points": 5, "seed": 0} | settings
    write(folder, Curve(kind=kind, positions=GRID, values=values, settings=given, weights=weights))


def drawn(tmp_path: Path) -> dict[str, Drawn]:
    records = read_all([tmp_path / "runs"])
    rows = summarize(records)
    return {figure.name: figure for figure in landscapes(records, rows, looks(rows))}


@pytest.mark.parametrize("kind", ["density", "line", "between", "plane"])
def test_each_kind_has_a_figure_with_all_methods(write_run: WriteRun, tmp_path: Path, kind: str) -> None:
    add(write_run("plain"), kind)
    add(write_run("sam"), kind, 2.0)
    (figure,) = drawn(tmp_path).values()
    assert figure.name == kind
    assert all(f">{name}<" in figure.svg for name in ("plain", "sam"))
    assert "the run" in figure.caption
    assert "Measured with points 5, seed 0." in figure.caption
    assert figure.wide == (kind == "plane")
    assert figure.svg.startswith("<svg")
    assert "var(--c0" in figure.svg
    assert "var(--c1" in figure.svg


def test_nothing_measured_nothing_drawn(write_run: WriteRun, tmp_path: Path) -> None:
    add(write_run("plain"), weights="other")
    write_run("sam", finished=False)
    assert drawn(tmp_path) == {}


def test_one_seed_and_equal_settings(write_run: WriteRun, tmp_path: Path) -> None:
    add(write_run("plain", 0))
    for name in ("plain", "sam", "asam"):
        add(write_run(name, 1), examples=64)
    add(write_run("gsam", 1), examples=32)
    figure = drawn(tmp_path)["line"]
    assert "with seed 1" in figure.caption
    assert "examples 64" in figure.caption
    assert all(f">{name}<" in figure.svg for name in ("plain", "sam", "asam"))
    assert ">gsam<" not in figure.svg


@pytest.mark.parametrize("kind", ["density", "line", "plane"])
@pytest.mark.parametrize("height", [0.0, -1.0, 1e6])
def test_odd_values_are_drawn(write_run: WriteRun, tmp_path: Path, kind: str, height: float) -> None:
    add(write_run("plain"), kind, height)
    assert "<svg" in drawn(tmp_path)[kind].svg


@pytest.mark.parametrize("kind", ["density", "line", "plane"])
def test_values_that_are_not_finite_are_gaps(write_run: WriteRun, tmp_path: Path, kind: str) -> None:
    row: list[Any] = [math.nan, 1.0, 0.5, 1.0, math.inf]
    values = [row, *[[1.0] * 5] * 4] if kind == "plane" else row
    write(write_run("plain"), Curve(kind=kind, positions=GRID, values=values, weights=SHA))
    nothing = [[math.nan] * 5] * 5 if kind == "plane" else [math.nan] * 5
    write(write_run("sam"), Curve(kind=kind, positions=GRID, values=nothing, weights=SHA))
    svg = drawn(tmp_path)[kind].svg
    assert ">plain<" in svg
    assert ">sam<" not in svg
    assert "nan" not in svg.lower()


def test_many_methods_with_long_names(write_run: WriteRun, tmp_path: Path) -> None:
    for n in range(13):
        folder = write_run(f"sam:rho=0.{n},geometry=layerwise", folder=str(n))
        for kind in ("line", "plane"):
            add(folder, kind, n + 1.0)
    figures = drawn(tmp_path)
    for n in range(13):
        assert f">sam:rho=0.{n},geometry=layerwise<" in figures["plane"].svg
    assert figures["line"].svg.count(">sam:rho=0.") == 13


def test_the_page_and_the_export_have_the_figures(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run("plain")
    for kind in ("line", "plane"):
        add(folder, kind)
    records = read_all([tmp_path / "runs"])
    html = write_page(records, tmp_path / "page.html").read_text()
    assert "Loss along a random direction from the final weights" in html
    assert '<figure class="full"' in html
    names = [path.name for path in export(records, tmp_path / "exported")]
    assert [name for name in names if name.endswith(("line.svg", "plane.svg"))]
