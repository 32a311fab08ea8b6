"""The record, the words and the page of a plan that is made by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from edited_records import edited
from made_plans import DATA, ONE, PROBE, entries, made, prediction, survey

from lowland.core.errors import ArgumentError, StateError
from lowland.report.plans import figures
from lowland.report.plans.page import export, render, write_page
from lowland.report.plans.record import VERSION, PlanRecord
from lowland.report.plans.words import HEADINGS, UNCOVERED, cells, recommendation, setting


def test_a_record_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(entries()))
    found, contents = PlanRecord.read(path)
    assert (found, contents) == (made(), entries())
    assert list(found.fastest()) == ["plain", "sampa", "sam", "<b>own</b>"]
    assert found.predictions[0].speed == pytest.approx(8000)
    assert found.predictions[2].layout.ranks == 2  # the fastest first
    assert found.surveys[1].rates[0].lines["again"].slope == 2e-4


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("{", ArgumentError, "record must be a JSON file of lowland plan, but .* cannot be read"),
        ("[]", StateError, "record must be of version 1, but .* is not; run lowland plan again"),
        (json.dumps(entries(version=0)), StateError, "record must be of version 1"),
        (json.dumps({"version": VERSION}), StateError, "is damaged .'predictions'.; run lowland plan again"),
        (json.dumps(entries(predictions=[])), StateError, "is damaged .it has no predictions."),
        (json.dumps(entries(seconds="20")), StateError, "is damaged .PlanRecord.seconds is '20'."),
        (json.dumps(entries(surveys=[5])), StateError, "is damaged"),
        (
            json.dumps(entries(predictions=[prediction("plain", ONE, 4.0, memory="much")])),
            StateError,
            "PredictionRecord.memory is 'much'",
        ),
    ],
)
def test_files_that_are_no_records(tmp_path: Path, text: str, error: type[Exception], words: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(error, match=words):
        PlanRecord.read(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="name another"):
        PlanRecord.read(tmp_path / "none.json")


def test_the_row_of_a_method() -> None:
    plan = made()
    rows = {
        name: dict(zip(HEADINGS, cells(one, plan.fastest()["plain"]), strict=True))
        for name, one in plan.fastest().items()
    }
    assert rows["sampa"] == {
        "method": "sampa", "layout": "probe=2", "ms a step": "6.00 ± 10 %", "of plain": "1.50", "examples/s": "5,333",
        "MB sent": "2.00", "MB memory": "3.0", "bound by": "exchange",
    }  # fmt: skip
    assert (rows["plain"]["MB sent"], rows["<b>own</b>"]["MB memory"]) == ("–", "–")
    assert cells(plan.predictions[0], None)[3] == "–"


def test_the_recommendation() -> None:
    assert recommendation(made()) == [
        "plain is fastest on the layout of plain.",
        "sampa is fastest on the layout of sampa.",
        "sam is fastest on the layout of sam.",
        "Beside plain training, sampa has the cheapest step.",
    ]
    # 6 ± 0.6 ms and 6.5 ± 0.65 ms
    alike = [prediction("plain", ONE, 4.0), prediction("sampa", PROBE, 6.0), prediction("sam", DATA, 6.5)]
    assert recommendation(made(predictions=alike))[-1] == (
        "The next, sam, differs by less than the error of the two predictions."
    )
    alone = made(predictions=[prediction("sam", ONE, 4.0)])
    assert recommendation(alone) == ["sam is fastest on the layout of sam."]


def test_what_was_planned() -> None:
    shown = dict(setting(made()))
    assert shown["model"] == "mlp, 4.00 MB of parameters"
    assert (shown["processes"], shown["measured for"]) == ("1, 2", "about 20 seconds")
    assert shown["machine"] == "x86_64, a chip, torch 2.0, lowland 0.0"
    assert dict(setting(made(room=None)))["memory free"] == "–"


def test_the_page(tmp_path: Path) -> None:
    plan = made(runs=["sam: not known."])
    page = write_page(plan, tmp_path / "plan.html", command="lowland plan --seconds 20").read_text(encoding="utf-8")
    assert page == render(plan, "lowland plan --seconds 20")
    for text in (
        *recommendation(plan),
        "sam: not known.",
        "lowland plan --seconds 20",
        "the model has no normalization",
    ):
        assert text in page
    assert all(text.replace("'", "&#39;") in page for text in UNCOVERED)
    assert page.count("<svg") == 5  # parts, layouts, memory, and the lines of one and of two ranks
    assert "&lt;b&gt;own" in page
    assert "<b>own" not in page
    assert not re.search(r'(src|href)="(?!#)', page)  # it needs no network
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert "A framed part left of zero is time saved" in page
    assert "How to reproduce" not in render(plan)
    assert "the better buy" not in render(made())


def test_figures_without_anything_to_draw() -> None:
    alone = made(predictions=[prediction("plain", ONE, 4.0, memory=None)], surveys=[survey(1)])
    assert figures.by_layout(alone) == figures.memory(alone) == ""
    assert render(alone).count("<svg") == 2
    assert "framed part" not in render(alone)
    unknown = made(predictions=[prediction("gsam", ONE, 4.0)])
    assert figures.followed(unknown) == {}
    assert figures.by_layout(unknown) == ""


def test_a_bar_ends_at_the_time_of_the_step() -> None:
    from matplotlib.figure import Figure

    for one in made().predictions:
        axes = Figure().add_subplot()
        figures._stack(axes, 0, one)
        ends = [bar.get_x() + max(bar.get_width(), 0) for bar in axes.patches]  # type: ignore[attr-defined]
        total = 1e3 * (one.passes + one.busy + one.exchange + one.own)
        assert max(ends) == pytest.approx(total)


def test_the_methods_that_are_followed() -> None:
    names = ["sam:rho=0.1", "plain", "looksam", "gsam", "micro-sam:m=4", "sampa"]
    look = figures.followed(made(predictions=[prediction(name, ONE, 4.0) for name in names], why={}))
    assert list(look) == ["plain", "sam:rho=0.1", "sampa", "micro-sam:m=4", "looksam"]
    assert [one.number for one in look.values()] == [0, 1, 2, 3, 4]


def test_lines_have_the_examples_that_a_rank_has() -> None:
    lines = figures._lines(made().surveys[1])
    assert [(name, most) for name, _, most in lines] == [
        ("alone", 32), ("beside others", 32), ("data=2", 16), ("probe=2", 32),
    ]  # fmt: skip
    assert [name for name, _, _ in figures._lines(made().surveys[0])] == ["alone"]


def test_figures_are_exported(tmp_path: Path) -> None:
    files = export(made(), tmp_path / "figures")
    assert [path.name for path in files] == [
        f"plan-{name}.svg" for name in ("parts", "layouts", "memory", "passes-1", "passes-2")
    ]
    assert all("var(" not in path.read_text(encoding="utf-8") for path in files)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["predictions", 0, "seconds"], 0),
        (["predictions", 0, "seconds"], -1.0),
        (["predictions", 0, "seconds"], True),
        (["predictions", 0, "error"], float("nan")),
        (["predictions", 0, "memory"], -1e6),
        (["predictions", 0, "bytes"], 10**400),
        (["predictions", 0, "method"], "another"),
        (["predictions", 0, "bound"], "banana"),
        (["predictions", 0, "layout", "probe"], 0),
        (["surveys", 0, "quiet", "lines"], {}),
        (["surveys", 0, "examples"], 0),
        (["why"], {}),
        (["why", "plain"], 3),
        (["left_out"], {"sam": 3}),
        (["runs"], [1]),
        (["machine"], {}),
        (["task"], "\ud800"),
        (["version"], True),
    ],
)
def test_an_edited_record_is_refused_in_words(place: list[Any], value: Any, tmp_path: Path) -> None:
    path = edited(tmp_path / "record.json", entries(), place, value)
    with pytest.raises((ArgumentError, StateError), match=r"record"):
        PlanRecord.read(path)


def test_a_record_in_another_order_has_the_fastest_first(tmp_path: Path) -> None:
    made = entries()
    fastest = PlanRecord.of(made).fastest()
    assert PlanRecord.of({**made, "predictions": made["predictions"][::-1]}).fastest() == fastest
