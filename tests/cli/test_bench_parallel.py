from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lowland.bench.two_processes import driver as parallel
from lowland.bench.two_processes import network
from lowland.cli.bench import figure
from lowland.cli.bench.comm import Comm, sentence
from lowland.cli.bench.parallel import Parallel
from lowland.cli.main import main

MBIT = [1000.0, 100.0, 30.0]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parallel.CASES, "tiny", parallel.Case("mlp", 8, 8))


def _found(mbit: float) -> dict[str, Any]:
    """What might be measured at a bandwidth: data-parallel SAM suffers twice as much from little of it."""
    ratios = {"sam / plain": 2.0, "sampa / plain": 1.0 + 100 / mbit, "dp-sam / plain": 0.8 + 200 / mbit}
    ratios |= {"sampa / dp-sam": ratios["sampa / plain"] / ratios["dp-sam / plain"]}
    ratios |= {"sampa / sam": ratios["sampa / plain"] / 2}
    ms = {"sampa": 20 * ratios["sampa / plain"], "dp-sam": 20 * ratios["dp-sam / plain"]}
    expected = {"base_ms": 2.0, "nothing": {"sampa": 200.0, "dp-sam": 300.0}, "all": {"sampa": 90.0, "dp-sam": 80.0}}
    found = {"mbit": mbit, "rounds": 5, "ratios": ratios, "exposed_share": {"sampa": 0.25, "dp-sam": 0.5}}
    return {**found, "median_ms": ms, "closed_form": expected}


def _result() -> dict[str, Any]:
    found = [_found(mbit) for mbit in MBIT]
    faster = {f"sampa than {other}": parallel.crossings(found, "sampa", other) for other in ("dp-sam", "sam")}
    level = {"nothing": [62.5], "all": []}
    return {"case": "tiny", "delay": 0.0, "bandwidths": found, "faster": faster, "level": level}


@pytest.mark.slow
def test_parallel_prints_a_table_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    assert main(["bench", "parallel", "--cases", "tiny", "--rounds", "5", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("tiny: on two processes, SAMPa ")
    assert re.search(
        r"data-parallel SAM minus one of SAMPa is [+-][\d.]+ ms, and \+[\d.]+ ms by the closed form", shown
    )
    assert shown.index("sampa / plain-twice") < shown.index("sam / plain ")
    for name in ("dp-plain", "dp-sam", "sampa", "sampa-messages"):
        assert f"not hidden behind backward: {name} " in shown
    for told in ("tiny, 5 rounds", "sampa / dp-sam", "in a step: sampa", "not hidden behind backward", "median step"):
        assert told in shown
    found = json.loads(out.read_text())
    assert found["machine"]["threads"] == 1
    assert found["machine"]["cores"] >= 1
    (case,) = found["cases"]
    assert case["bytes"]["sampa"] == case["parameters"]
    assert case["ratios"]["sampa / plain"] > 0
    assert list(tmp_path.iterdir()) == [out]


def test_each_kind_has_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parallel, "measure_network", lambda name, **options: _result())
    monkeypatch.setattr(network, "rehearse", lambda *limits: None)
    for what in ("parallel", "comm"):
        monkeypatch.setattr({"parallel": Parallel, "comm": Comm}[what], "tables", lambda *result: [])
        monkeypatch.setattr(parallel, "measure", lambda name, **options: {"case": name})
        assert main(["bench", what, "--cases", "tiny"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bench-comm.json",
        "bench-comm.svg",
        "bench-parallel.json",
    ]


def test_comm_shows_where_sampa_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def measured(name: str, *, rounds: int, bandwidths: tuple[float, ...], delay: float, tick: Any) -> dict[str, Any]:
        asked.append((name, rounds, bandwidths, delay))
        return _result()

    monkeypatch.setattr(parallel, "measure_network", measured)
    monkeypatch.setattr(network, "rehearse", lambda *limits: asked.append(limits))
    out = tmp_path / "comm.json"
    arguments = ["--cases", "tiny", "--rounds", "5", "--bandwidths", "30", "1000", "100", "--out", str(out)]
    assert main(["bench", "comm", *arguments]) == 0
    assert asked == [(MBIT, 0.0), ("tiny", 5, (30.0, 1000.0, 100.0), 0.0)]
    shown = capsys.readouterr().out
    assert "25.0 % of the step" in shown
    assert "tiny: SAMPa on two is faster than data-parallel SAM on two at 100, 30 Mbit/s; the two are level" in shown
    # 1.1 / 2 at 1000 Mbit/s, as long as SAM on one process at 100, longer at 30
    assert "tiny: SAMPa on two is faster than SAM on one at 1000 Mbit/s; the two are level at about 100 Mbit/s" in shown
    # 20 times 0.8 + 2 and 1 + 1
    assert re.search(r"\b100 +56 +80 to 300 +40 +90 to 200\b", shown)
    levels = "level at 62.5 Mbit/s if backward hides nothing, nowhere if backward hides what it can."
    assert f"by the closed form SAMPa on two and SAM on one are {levels}" in " ".join(shown.split())
    assert json.loads(out.read_text())["cases"] == [_result()]
    drawn = (tmp_path / "comm.svg").read_text()
    assert drawn.startswith("<?xml")
    for text in ("SAMPa on two", "data-parallel SAM on two", "bandwidth, Mbit/s", "tiny"):
        assert f"<!-- {text} -->" in drawn  # matplotlib notes the text that it draws as curves


def test_a_figure_has_a_panel_for_each_case(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(figure, "_save", lambda drawn, out: figures.append(drawn))
    figure.draw([_result(), {**_result(), "case": "other"}], Path("x.svg"))
    first, second = figures[0].axes
    assert second.get_title(loc="left") == "other"
    lines = {line.get_label(): line for line in first.get_lines()}
    assert set(lines) == set(figure.NAMES.values())
    sampa = lines["SAMPa on two"]
    assert list(sampa.get_xdata()) == MBIT
    assert list(sampa.get_ydata()) == [1 + 100 / mbit for mbit in MBIT]
    assert first.get_xscale() == "log"
    assert [label.get_text() for label in first.get_xticklabels()] == ["1,000", "100", "30"]


@pytest.mark.parametrize(("least", "told"), [(0.9, "at every bandwidth measured."), (1.1, "at no bandwidth measured.")])
def test_sentences_for_all_and_none(least: float, told: str) -> None:
    found = [{"mbit": mbit, "ratios": {"sampa / sam": least}} for mbit in MBIT]
    faster = {"sampa than sam": parallel.crossings(found, "sampa", "sam")}
    shown = sentence({"case": "tiny", "bandwidths": found, "faster": faster}, "sam")
    assert shown == f"tiny: SAMPa on two is faster than SAM on one {told}"


def _refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["bench", *arguments]) == 2
    return capsys.readouterr().err


def test_comm_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(network.sys, "platform", "linux")
    monkeypatch.setattr(network.os, "geteuid", lambda: 1000)
    assert "needs root, because it makes network namespaces" in _refused(capsys, "comm", "--cases", "tiny")
    monkeypatch.setattr(network.os, "geteuid", lambda: 0)
    monkeypatch.setattr(network.shutil, "which", lambda tool: None)
    assert "ip and tc cannot be found; install iproute2" in _refused(capsys, "comm", "--cases", "tiny")
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["parallel", "--bandwidths", "30"], ["overhead", "--delay", "1"]):
        with pytest.raises(SystemExit, match="2"):  # an option of comm
            main(["bench", *arguments])
        assert "nrecognized options" in capsys.readouterr().err
    assert "must be the JSON file" in _refused(capsys, "comm", "--out", str(tmp_path / "x.svg"))
    assert "bandwidths must be a number >= 0.1" in _refused(capsys, "comm", "--bandwidths", "0")
    assert "rounds must be an integer >= 5" in _refused(capsys, "parallel", "--cases", "tiny", "--rounds", "4")
    assert "did you mean 'tiny'" in _refused(capsys, "parallel", "--cases", "tiny", "tini")
    assert list(tmp_path.iterdir()) == []
