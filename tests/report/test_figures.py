from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lowland.report import read, summarize
from lowland.report.drawing import COLORS, looks
from lowland.report.figures import cost_axis, curves, front, pareto
from lowland.runs.record import RunRecord

WriteRun = Callable[..., Path]
METHODS = ["plain", "sam", "sampa", "looksam", "micro-sam", "arsam"]
SVG = "{http://www.w3.org/2000/svg}"


def compared(write_run: WriteRun, methods: list[str], seeds: int = 2, **options: object) -> list[RunRecord]:
    return [
        read(write_run(m, s, accuracy=0.9 + n / 100, **options)) for n, m in enumerate(methods) for s in range(seeds)
    ]


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("seeds", [1, 3])
def test_every_figure_is_svg_that_names_every_method(write_run: WriteRun, seeds: int) -> None:
    records = compared(write_run, METHODS, seeds, epochs=12)
    rows, look = summarize(records), looks(METHODS, "plain")
    drawn = [
        front(rows, look),
        curves(records, rows, look),
        curves(records, rows, look, over="seconds"),
        curves(records, rows, look, value="train_loss"),
    ]
    ids: list[str] = []
    for svg in drawn:
        assert set(METHODS) <= set(texts(svg))
        assert "<image" not in svg
        ids += re.findall(r'\bid="([^"]*)"', svg)
        for used in re.findall(r'(?:href="#|url\(#)([^")]*)', svg):
            assert used in ids  # references follow the renamed identifiers
    assert len(ids) == len(set(ids))  # also across the figures of a page


def test_colors_are_variables_with_a_fallback(write_run: WriteRun) -> None:
    records = compared(write_run, ["plain", "sam"])
    svg = curves(records, summarize(records), looks(["plain", "sam"], "plain"))
    assert f"var(--c1, {COLORS[0]})" in svg
    assert "var(--ink, " in svg
    bare = re.sub(r"var\([^)]*\)", "", svg)
    assert not re.search(r"(fill|stroke): #", bare)


def test_drawing_is_reproducible(write_run: WriteRun) -> None:
    rows, look = summarize(compared(write_run, METHODS)), looks(METHODS, "plain")
    assert front(rows, look) == front(rows, look)


def test_same_method_same_look_and_all_differ() -> None:
    found = looks([*METHODS, "sam", *(f"m{n}" for n in range(20))], "plain")
    assert len({(look.color, look.marker) for look in found.values()}) == len(found) == 26


def test_labels_of_the_front_do_not_overlap(write_run: WriteRun) -> None:
    # all six at nearly the same cost and accuracy: the hardest case
    records = [
        read(write_run(m, 0, accuracy=0.95 + n * 2e-4, seconds_per_step=0.01 + n * 1e-5)) for n, m in enumerate(METHODS)
    ]
    svg = front(summarize(records), looks(METHODS, "plain"))
    named = [element for element in ElementTree.fromstring(svg).iter(f"{SVG}text") if element.text in METHODS]
    boxes = [(float(e.attrib["x"]), float(e.attrib["y"]), 5.0 * len(e.text or "")) for e in named]
    assert len(boxes) == 6
    for i, (x, y, width) in enumerate(boxes):
        for ox, oy, other in boxes[:i]:
            assert abs(y - oy) > 8 or abs(x - ox) > (width + other) / 2


def test_pareto_front() -> None:
    assert pareto([(2, 5), (1, 3), (3, 4), (2, 4), (4, 6), (1, 3)]) == [(1, 3), (2, 5), (4, 6)]
    assert pareto([]) == []


def test_cost_axis_falls_back(write_run: WriteRun) -> None:
    timed = summarize(compared(write_run, ["plain", "sam"]))
    assert cost_axis(timed)[0] == "time per step, × plain"
    alone = summarize([read(write_run("looksam"))])
    assert cost_axis(alone) == ("time per step, ms", {"looksam": 10.0})
    folder = write_run("sam", 7)
    file = folder / "run.jsonl"
    file.write_text(re.sub(r'"seconds_per_step": [\d.]+', '"seconds_per_step": null', file.read_text()))
    assert cost_axis(summarize([read(folder)])) == ("gradients per step", {"sam": 2.0})


def test_nothing_finished_draws_nothing(write_run: WriteRun) -> None:
    records = [read(write_run("sam", finished=False))]
    rows, look = summarize(records), looks(["sam"], None)
    assert front(rows, look) == curves(records, rows, look) == ""


def test_one_epoch_and_odd_names(write_run: WriteRun) -> None:
    names = ["sam:$x_", r"plain:\frac", "sampa:<b>&'\""]
    records = compared(write_run, names, 1, epochs=1)
    rows, look = summarize(records, baseline="none"), looks(names, None)
    assert "sam" in texts(front(rows, look))
    several = compared(write_run, [f"sam:{name}" for name in names], 1, epochs=1)
    svg = curves(several, summarize(several), looks([f"sam:{name}" for name in names], None))
    assert {f"sam:{name}" for name in names} <= set(texts(svg))


def test_two_dozen_methods_leave_room_for_the_drawing(write_run: WriteRun) -> None:
    few, many = METHODS[:3], [f"method-{n}" for n in range(24)]

    def heights(methods: list[str]) -> list[float]:
        records = compared(write_run, methods, 1, epochs=12)
        rows, look = summarize(records), looks(methods, None)
        drawn = [curves(records, rows, look), front(rows, look)]  # a warning would be an error here
        assert all(set(methods) <= set(texts(svg)) for svg in drawn)
        return [float(re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', svg)[1]) for svg in drawn]  # type: ignore[index]

    assert all(tall > usual + 72 for tall, usual in zip(heights(many), heights(few), strict=True))
