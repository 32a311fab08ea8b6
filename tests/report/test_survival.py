"""The figures of survival: the values that were measured alike, at their levels, with intervals."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

from made_runs import WriteRun

from lowland.report import export, read_all, summarize, write_page
from lowland.report.drawing import looks
from lowland.report.survival import survival
from lowland.runs.measures import Measure, append

SHA = "0123456789abcdef" * 4
SVG = "{http://www.w3.org/2000/svg}"
SHARED = {"examples": 500, "refresh_stats": 0}


def add(folder: Path, name: str, value: float | None, error: float | None = None, **settings: object) -> None:
    given = SHARED | settings
    append(folder, [Measure(group="survival", name=name, title="", value=value, error=error, weights=SHA,
                            settings=given, unit="%", scale=100)])  # fmt: skip


def quantized(folder: Path, values: dict[int, float], granularity: str = "channel", **settings: object) -> None:
    add(folder, "unchanged-test-accuracy", 0.9, **settings)
    for bits, value in values.items():
        add(folder, "quantized-test-accuracy", value, bits=bits, granularity=granularity, **settings)


def drawn(tmp_path: Path) -> list[tuple[str, str]]:
    rows = summarize(read_all([tmp_path / "runs"]))
    return survival(rows, looks(rows))


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def heights(svg: str) -> list[float]:
    """The heights of the marks, the first contestant's first."""
    return [float(y) for y in re.findall(r'<use [^>]*y="([\d.]+)"[^>]*style="[^"]*stroke: var', svg)]


def test_each_contestant_has_a_line_over_the_bits(write_run: WriteRun, tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        quantized(write_run("plain", seed), {8: 0.89, 4: 0.7 + 0.01 * seed, 3: 0.2})
        quantized(write_run("sam", seed), {8: 0.9, 4: 0.8, 3: 0.3})
    ((svg, caption),) = drawn(tmp_path)
    shown = texts(svg)
    assert {"plain", "sam", "bits of a weight", "test accuracy, %"} <= set(shown)
    assert shown[:4] == ["32", "8", "4", "3"]
    assert "Test accuracy after the weights were rounded to fewer bits, mean over seeds." in caption
    assert "Bars are 95 % intervals over seeds, cut at impossible values." in caption
    assert "With examples 500, granularity channel, refresh stats 0." in caption


def test_the_marks_are_at_the_means(write_run: WriteRun, tmp_path: Path) -> None:
    quantized(write_run("plain"), {8: 0.8, 4: 0.7, 3: 0.5})
    ((svg, caption),) = drawn(tmp_path)
    y = heights(svg)[-4:]
    # equal steps of a tenth down to 4 bits, and twice that to 3 bits
    steps = [b - a for a, b in pairwise(y)]
    assert steps[0] > 0
    assert abs(steps[1] - steps[0]) < 0.01
    assert abs(steps[2] - 2 * steps[0]) < 0.01
    assert "Bars" not in caption


def test_noise_has_the_error_of_the_draws_with_one_seed(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run("plain")
    add(folder, "unchanged-test-accuracy", 0.9)
    for level in (0.1, 0.01):
        add(folder, "noisy-test-accuracy", 0.9 - level, 0.01, noise=level, norm="filter", draws=5, seed=0)
    ((svg, caption),) = drawn(tmp_path)
    assert texts(svg)[:3] == ["0", "0.01", "0.1"]
    assert "Bars are standard errors over draws" in caption


def test_both_kinds_of_bars_are_said(write_run: WriteRun, tmp_path: Path) -> None:
    """One contestant has three seeds, the other has one: a standard error is no 95 % interval."""
    for text, seed in (("plain", 0), ("plain", 1), ("plain", 2), ("sam", 0)):
        folder = write_run(text, seed)
        add(folder, "unchanged-test-accuracy", 0.9)
        add(folder, "noisy-test-accuracy", 0.8 + 0.01 * seed, 0.01, noise=0.1, norm="filter", draws=5, seed=0)
    ((_, caption),) = drawn(tmp_path)
    assert "Bars are 95 % intervals over seeds, with one seed standard errors over draws, cut" in caption


def test_values_of_other_settings_have_their_own_figure(write_run: WriteRun, tmp_path: Path) -> None:
    plain, sam = write_run("plain"), write_run("sam")
    quantized(plain, {4: 0.8})
    quantized(sam, {4: 0.8}, granularity="tensor")
    quantized(sam, {4: 0.8}, examples=100)
    assert [set(texts(svg)) & {"plain", "sam"} for svg, _ in drawn(tmp_path)] == [{"plain"}, {"sam"}, {"sam"}]


def test_what_is_missing_is_not_drawn(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("plain")
    assert drawn(tmp_path) == []
    add(write_run("sam"), "quantized-test-accuracy", 0.8, bits=4, granularity="channel")  # nothing to compare with
    assert drawn(tmp_path) == []
    folder = write_run("sampa")
    quantized(folder, {4: 0.8})
    add(folder, "quantized-test-accuracy", None, bits=3, granularity="channel")  # not finite
    ((svg, _),) = drawn(tmp_path)
    assert texts(svg)[:2] == ["32", "4"]


def test_the_page_and_the_export_have_the_figure(write_run: WriteRun, tmp_path: Path) -> None:
    quantized(write_run("plain"), {4: 0.8})
    records = read_all([tmp_path / "runs"])
    assert "bits of a weight" in write_page(records, tmp_path / "page.html").read_text()
    files = {path.name: path.read_text() for path in export(records, tmp_path / "exported")}
    (figure,) = (text for name, text in files.items() if name.endswith("survival-1.svg"))
    assert "bits of a weight" in figure
    assert not any(name.endswith("survival.md") for name in files)  # these measures have no titles
