from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from made_runs import lines_of, modern, write_lines

from lowland.report import read, summarize
from lowland.report.curves import banded, curves
from lowland.report.drawing import looks
from lowland.runs.record import RunRecord

WriteRun = Callable[..., Path]
METHODS = ["plain", "sam", "sampa", "looksam", "micro-sam", "arsam"]
SVG = "{http://www.w3.org/2000/svg}"


def compared(write_run: WriteRun, methods: Sequence[str], seeds: int = 2, **options: object) -> list[RunRecord]:
    return [
        read(write_run(m, s, accuracy=0.7 + n / 100, **options)) for n, m in enumerate(methods) for s in range(seeds)
    ]


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("seeds", [1, 3])
def test_every_figure_names_every_method(write_run: WriteRun, seeds: int) -> None:
    records = compared(write_run, METHODS, seeds, epochs=12)
    rows = summarize(records)
    look = looks(rows)
    drawn = [
        curves(records, rows, look),
        curves(records, rows, look, over="seconds"),
        curves(records, rows, look, value="train_loss"),
    ]
    ids: list[str] = []
    for svg in drawn:
        assert set(METHODS) <= set(texts(svg))
        ids += re.findall(r'\bid="([^"]*)"', svg)
        for used in re.findall(r'(?:href="#|url\(#)([^")]*)', svg):
            assert used in ids  # references follow the renamed identifiers
    assert len(ids) == len(set(ids))  # also across the figures of a page


def test_bands_only_where_they_can_be_told_apart(write_run: WriteRun) -> None:
    far = compared(write_run, ["plain", "sam"], seeds=3)  # equal seeds, a point apart
    assert banded(far, summarize(far))
    near = [read(write_run(m, s, accuracy=0.9 + 0.01 * s, folder=f"{m}n{s}")) for m in ("plain", "sam") for s in (0, 1)]
    assert not banded(near, summarize(near))
    many = compared(write_run, [f"m{n}" for n in range(5)], seeds=2)
    assert not banded(many, summarize(many))
    assert not banded(far[:1], summarize(far[:1]))  # one seed has no interval


def test_no_axis_beyond_what_is_possible(write_run: WriteRun) -> None:
    records = [read(write_run(m, s, accuracy=0.99 + 0.009 * s)) for m in ("plain", "sam") for s in (0, 1)]
    rows = summarize(records)
    shown = [float(t) for t in texts(curves(records, rows, looks(rows))) if re.fullmatch(r"\d+(\.\d+)?", t)]
    assert max(shown) <= 100


def test_another_metric(tmp_path: Path) -> None:
    perplexity = {"name": "perplexity", "unit": "bits", "scale": 1, "higher": False}
    records = [
        read(write_lines(tmp_path / m, modern(lines_of(m, accuracy=a, epochs=9), perplexity)))
        for m, a in (("plain", 21.0), ("sam", 20.0))
    ]
    rows = summarize(records)
    assert "test perplexity, bits" in texts(curves(records, rows, looks(rows)))


def test_nothing_finished_draws_nothing(write_run: WriteRun) -> None:
    records = [read(write_run("sam", finished=False))]
    rows = summarize(records)
    assert curves(records, rows, looks(rows)) == ""


def test_one_epoch(write_run: WriteRun) -> None:
    records = compared(write_run, ["plain", "sam:$x_"], 1, epochs=1)
    rows = summarize(records)
    assert "sam" in texts(curves(records, rows, looks(rows)))


def test_two_dozen_methods_have_room_for_their_names(write_run: WriteRun) -> None:
    names = [f"method-{n}" for n in range(24)]
    records = compared(write_run, names, 1, epochs=12)
    rows = summarize(records)
    svg = curves(records, rows, looks(rows))
    assert set(names) <= set(texts(svg))
    places = [float(e.attrib["y"]) for e in ElementTree.fromstring(svg).iter(f"{SVG}text") if e.text in names]
    places.sort()
    assert min(b - a for a, b in pairwise(places)) > 10
