from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from made_runs import family, lines_of, modern, write_lines

from lowland.report import Row, read, summarize
from lowland.report.drawing import COLORS, looks
from lowland.report.gains import cost_axis, cut, gains

WriteRun = Callable[..., Path]
SVG = "{http://www.w3.org/2000/svg}"


def rows_of(tmp_path: Path, count: int, seeds: int = 3, **options: float) -> list[Row]:
    lines = family(count, seeds, **options)
    return summarize([read(write_lines(tmp_path / f"{count}-{n}", each)) for n, each in enumerate(lines)])


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def numbers(svg: str, sign: str = "[+−]") -> list[float]:
    """What stands beside the vertical axis of gains."""
    return [float(t.replace("−", "-")) for t in texts(svg) if re.fullmatch(sign + r"\d+(\.\d+)?", t)]


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("narrow", [False, True])
def test_every_contestant_is_named(tmp_path: Path, seeds: int, narrow: bool) -> None:
    rows = rows_of(tmp_path, 6, seeds)
    svg = gains(rows, looks(rows), narrow=narrow)
    assert {row.label for row in rows} <= set(texts(svg))
    assert not cut(rows)
    assert {"gain over plain, points", "time per step, × plain"} <= set(texts(svg))
    assert "<image" not in svg


def test_at_most_eight_colors_for_the_largest_gains(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, 23)
    look = looks(rows)
    colored = [row for row in rows if 1 <= look[row.contestant].number <= 8]
    grey = [row for row in rows if look[row.contestant].grey]
    assert (len(colored), len(grey), look["plain"].number) == (8, 14, 0)
    assert min(r.difference.mean for r in colored if r.difference) >= max(
        r.difference.mean for r in grey if r.difference
    )
    assert len({look[row.contestant].color for row in colored}) == 8
    assert {row.label for row in rows} <= set(texts(gains(rows, look))) | {"late"}


def test_colors_are_variables_with_a_fallback(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, 3)
    svg = gains(rows, looks(rows))
    assert f"var(--c1, {COLORS[0]})" in svg
    assert "var(--muted, " in svg
    assert not re.search(r"(fill|stroke): #", re.sub(r"var\([^)]*\)", "", svg))


def test_drawing_is_reproducible(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, 6)
    assert gains(rows, looks(rows)) == gains(rows, looks(rows))


def test_no_gain_beyond_what_is_possible(tmp_path: Path) -> None:
    """At 99.4 % no more than 0.6 points can be gained, however wide the intervals of two seeds are."""
    accuracies = {"plain": (0.993, 0.995), "sam": (0.996, 0.999), "sampa": (0.9951, 0.9999)}
    runs = [lines_of(m, s, accuracy=a) for m, each in accuracies.items() for s, a in enumerate(each)]
    rows = summarize([read(write_lines(tmp_path / str(n), lines)) for n, lines in enumerate(runs)])
    assert rows[1].difference is not None
    assert rows[1].difference.half is not None
    assert rows[1].difference.half > 0.006
    assert cut(rows)
    shown = numbers(gains(rows, looks(rows)))
    assert shown
    assert max(shown) <= 0.6


def test_where_lower_is_better_gains_are_bounded_by_nothing_and_point_up(tmp_path: Path) -> None:
    perplexity = {"name": "perplexity", "unit": "", "scale": 1, "higher": False}
    runs = [
        modern(lines_of(m, s, accuracy=20.0 + 0.1 * s - gain), perplexity)
        for m, gain in (("plain", 0.0), ("sam", 2.0), ("sampa", 1.0))
        for s in (0, 1)
    ]
    rows = summarize([read(write_lines(tmp_path / str(n), lines)) for n, lines in enumerate(runs)])
    svg = gains(rows, looks(rows))
    assert "gain over plain" in texts(svg)
    assert max(numbers(svg)) > 1.5


def test_without_a_baseline_scores_are_drawn(write_run: WriteRun) -> None:
    rows = summarize([read(write_run(m, s, accuracy=0.99 + 0.009 * s)) for m in ("sam", "looksam") for s in (0, 1)])
    svg = gains(rows, looks(rows))
    assert {"test accuracy, %", "time per step, ms", "sam", "looksam"} <= set(texts(svg))
    assert max(numbers(svg, sign="")) <= 100


def test_cost_axis_falls_back(write_run: WriteRun) -> None:
    timed = summarize([read(write_run(m)) for m in ("plain", "sam")])
    assert cost_axis(timed)[0] == "time per step, × plain"
    alone = summarize([read(write_run("looksam"))])
    assert cost_axis(alone) == ("time per step, ms", {"looksam": 10.0})
    folder = write_run("sam", 7)
    file = folder / "run.jsonl"
    file.write_text(re.sub(r'"seconds_per_step": [\d.]+', '"seconds_per_step": null', file.read_text()))
    assert cost_axis(summarize([read(folder)])) == ("gradients per step", {"sam": 2.0})


def test_a_contestant_with_more_epochs_pays_for_them(write_run: WriteRun) -> None:
    rows = summarize([read(write_run(m, epochs=e)) for m, e in (("plain", 8), ("sam", 8), ("plain@epochs=16", 16))])
    costs = {"plain": 1.0, "sam": 1.0, "plain@epochs=16": 2.0}
    assert cost_axis(rows) == ("time of the whole training, × plain", costs)


def test_nothing_finished_draws_nothing(write_run: WriteRun) -> None:
    rows = summarize([read(write_run("sam", finished=False))])
    assert gains(rows, looks(rows)) == ""


@pytest.mark.parametrize("name", ["sam:$x_", r"sam:\frac", "sam:<b>&'\""])
def test_odd_names(write_run: WriteRun, name: str) -> None:
    rows = summarize([read(write_run(text, folder=text[:3])) for text in (name, "plain")])
    assert "sam" in texts(gains(rows, looks(rows)))


def test_long_names_are_broken_not_cut(write_run: WriteRun) -> None:
    names: Sequence[str] = ["plain", "sam:rho=0.1", "sam:rho=0.123,geometry=layerwise"]
    rows = summarize([read(write_run(text)) for text in names])
    shown = texts(gains(rows, looks(rows)))
    assert "sam:rho=0.1" in shown
    assert "".join(t for t in ("sam:rho=0.123,", "geometry=layerwi", "se") if t in shown).startswith("sam:rho=0.123,")
