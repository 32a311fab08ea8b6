"""The record, the words and the page, from studies that are made by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from edited_records import edited

from lowland.core.errors import ArgumentError, StateError
from lowland.report.planner.figures import looks
from lowland.report.planner.page import export, render, write_page
from lowland.report.planner.record import Base, Mark, Pair, Point, Scaling
from lowland.report.planner.words import NOT_COVERED, cells, saturation, shown, verdict

POINT = Point(
    method="sam", kept="global", devices=1, probe=1, data=1, examples=64, compute=8.0, exchange=0.0, rest=0.0, sent=0.0,
    simulated=8.5, error=0.1, alone=8.0, hours=100.0, failures=0, interval=60.0,
)  # fmt: skip


def scaled(devices: int, compute: float, **changes: object) -> Point:
    made = replace(POINT, devices=devices, data=devices, compute=compute, hours=100 / devices, alone=64 / compute)
    return replace(made, **changes)  # type: ignore[arg-type]


SAM = [scaled(1, 8.0), scaled(2, 4.5), scaled(4, 3.0, exchange=1.0), scaled(8, 2.75, exchange=1.0)]
SAMPA = [scaled(4, 2.0, method="sampa", probe=2, data=2), scaled(8, 1.5, method="sampa", probe=2, data=4)]
STUDY = Scaling(
    settings={"pass": "10 ms"},
    base=0.01,
    examples=6400.0,
    points=[*SAM, *SAMPA, *(replace(p, kept="per device") for p in SAM)],
    pair=Pair(
        batches=[1.0, 10.0, 100.0],
        bandwidths=[1e9, 1e10, 1e11],
        over_data=[[1.2, 1.1, 1.01], [1.5, 1.3, 1.1], [1.9, 1.6, 1.2]],
        over_one=[[0.5, 0.8, 1.2], [0.9, 1.2, 1.5], [1.3, 1.5, 1.9]],
    ),
    bases=[Base(link="cable", devices=[2, 4, 8], bases=[-0.001, 0.002, 0.003])],
    marks=[Mark(title="Slot", bandwidth=2e10, source="a document")],
    versions={"lowland": "0.0", "simpy": "4.0"},
)


def test_a_record_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "simulation.json"
    path.write_text(STUDY.text(), encoding="utf-8")
    assert Scaling.read(path) == STUDY
    assert render(Scaling.read(path)) == render(STUDY)


def test_wrong_records_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "simulation.json"
    with pytest.raises(ArgumentError, match="record must be a JSON file of lowland simulate"):
        Scaling.read(path)
    for text in ("[]", "{}", json.dumps({**json.loads(STUDY.text()), "version": 2})):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(StateError, match="must be of version 1"):
            Scaling.read(path)
    whole = json.loads(STUDY.text())
    broken = [{**whole, "more": 1}, {k: v for k, v in whole.items() if k != "marks"}, {**whole, "points": [{"a": 1}]}]
    for record in broken:
        path.write_text(json.dumps(record), encoding="utf-8")
        with pytest.raises(StateError, match="is damaged"):
            Scaling.read(path)


def test_efficiency() -> None:
    point = scaled(4, 3.0, exchange=1.0, rest=0.0, alone=8.0)
    assert point.seconds == 4.0
    assert point.ideal == 64 / 4.0 / 4 / 8.0
    assert replace(point, hours=2.0).efficiency(57_600) == 57_600 / 7200 / 4 / 8.0
    assert replace(point, hours=2.0).device_hours == 8.0


def test_where_data_parallelism_saturates() -> None:
    assert saturation(SAM) == SAM[1]  # 4.5 s, and 4 s on twice as many devices
    assert saturation(SAM[2:]) == SAM[2]  # 4 s, and 3.75 s
    assert saturation(SAM[:2]) is None  # 8 s, and 4.5 s
    assert saturation([SAM[0], SAM[2]]) is None  # four times as many devices say nothing
    assert saturation([]) is None


def test_the_verdict() -> None:
    # 8 s, 4.5 s, 4 s: from 2 devices to 4, a step is 1.13 times as fast.
    said = verdict(STUDY)
    assert said.startswith(
        "On two devices SAMPa is faster than data-parallel SAM for all batches and bandwidths drawn,"
    )
    assert "1.01 to 1.90 times" in said
    assert "data-parallel SAM saturates at 2 devices" in said
    assert "On 8 devices a step of SAM takes 3,750.0 ms, and of SAMPa on 2 × 4 1,500.0 ms, which is 2.50 times" in said
    slower = replace(STUDY, points=[*SAM, replace(SAMPA[1], compute=7.5)])
    assert "2.00 times slower" in verdict(slower)
    assert verdict(replace(STUDY, points=SAM[:2])).endswith("Data-parallel SAM does not saturate on these devices.")
    some = replace(STUDY, points=SAMPA, pair=replace(STUDY.pair, over_data=[[0.8, 1.1, 1.2]] * 3))
    assert "from 1.25 times slower to 1.20 times faster than data-parallel SAM" in verdict(some)
    assert "1.0×" not in render(some)
    assert "1×" in render(some)
    none = replace(some, pair=replace(STUDY.pair, over_data=[[0.8, 0.9, 0.9]] * 3))
    assert (
        verdict(none) == "On two devices SAMPa is slower than data-parallel SAM for all batches and bandwidths drawn."
    )


def test_cells_and_rows() -> None:
    assert cells(replace(SAM[2], failures=3, hours=123.4), 6400 * 3600) == [
        "sam", "4", "1×4", "4,000.0", "25.0 %", "8,500.0", "3", "61 %", "123", "494",
    ]  # fmt: skip
    assert cells(SAM[0], 6400.0)[4] == "–"
    assert {p.devices for p in shown(STUDY, "global")} == {2, 4, 8}  # four quarters of four numbers
    assert shown(replace(STUDY, points=[]), "global") == []


def test_looks() -> None:
    assert [look.number for look in looks(STUDY).values()] == [0, 1]
    many = replace(STUDY, points=[replace(POINT, method=f"m{n}") for n in range(10)])
    assert [look.number for look in looks(many).values()] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 9]


def test_the_page(tmp_path: Path) -> None:
    path = write_page(STUDY, tmp_path / "deep" / "page.html", command="lowland simulate --devices 8")
    text = path.read_text(encoding="utf-8")
    assert text.count("<svg") == 7
    assert "lowland simulate --devices 8" in text
    assert "a document" in text
    assert all(limit.replace("'", "&#39;") in text for limit in NOT_COVERED)
    assert "<script" not in text
    assert not re.search(r"(?:src|href)=\"http", text)
    assert len(set(re.findall(r' id="([^"]+)"', text))) == len(re.findall(r' id="([^"]+)"', text))


def test_a_page_of_one_mesh() -> None:
    text = render(replace(STUDY, points=[POINT]))
    assert text.count("<svg") == 2  # where SAMPa wins


def test_figures_are_exported(tmp_path: Path) -> None:
    files = export(STUDY, tmp_path / "figures")
    assert [file.name for file in files] == [
        f"simulation-{name}.svg"
        for name in ("pair", "bases", "efficiency-device", "efficiency-global", "steps", "gains", "costs")
    ]
    assert "var(" not in files[0].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["pair", "over_data"], []),
        (["pair", "over_data", 0], [1.0]),
        (["pair", "over_data", 0, 0], "a"),
        (["pair", "over_one", 0, 0], None),
        (["bases"], []),
        (["bases", 0, "bases"], [1.0]),
        (["points"], []),
        (["points", 0, "devices"], 0),
        (["points", 0, "hours"], 0.0),
        (["points", 0, "hours"], 10**400),
        (["points", 0, "compute"], 0.0),
        (["points", 0, "kept"], "x"),
        (["points", 1, "devices"], 1),
        (["settings"], [1]),
        (["versions"], {}),
        (["marks", 0, "bandwidth"], -1.0),
        (["examples"], float("nan")),
    ],
)
def test_an_edited_record_is_refused_in_words(place: list[Any], value: Any, tmp_path: Path) -> None:
    path = edited(tmp_path / "record.json", json.loads(STUDY.text()), place, value)
    with pytest.raises((ArgumentError, StateError), match=r"record"):
        Scaling.read(path)
