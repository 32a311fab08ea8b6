from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from forked import python
from made_plans import entries
from made_runs import WriteRun, write_run

from lowland.cli.main import main
from lowland.report.plans.record import PlanRecord

__all__ = ["write_run"]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(entries()))
    return path


def test_a_page_is_drawn_from_a_record(record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, folder = tmp_path / "page.html", tmp_path / "figures"
    assert main(["plan", "--record", str(record), "--out", str(page), "--export", str(folder)]) == 0
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.split()[:2] == ["sampa", "probe=2"])
    assert row.split()[1:] == ["probe=2", "6.00", "±", "10", "%", "1.50", "5,333", "2.00", "3.0", "exchange"]
    assert "Beside plain training, sampa has the cheapest step." in shown
    assert "left out: sam-on: the model has no normalization" in shown
    assert "Beside plain training, sampa has the cheapest step." in page.read_text(encoding="utf-8")
    assert {path.name for path in folder.iterdir()} >= {"plan-parts.svg", "plan-layouts.svg"}
    assert not (tmp_path / "page.json").exists()  # the record that was named stays the only one


def test_runs_are_said_everywhere(
    record: Path, tmp_path: Path, write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        write_run("plain", seed)
        write_run("sam", seed)
    page = tmp_path / "page.html"
    assert main(["plan", "--record", str(record), "--out", str(page), "--runs", str(tmp_path)]) == 0
    sentence = "not known, because no finished plain training has twice the steps of plain"
    assert sentence in " ".join(capsys.readouterr().out.split())
    assert sentence in page.read_text(encoding="utf-8")
    found, _ = PlanRecord.read(tmp_path / "page.json")
    assert sentence in found.runs[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "plan.json"], "out must be a page, but is plan.json, the record's name; write --out plan.html"),
        (["--seconds", "0"], "seconds must be above 0 and finite, but is 0.0; leave --seconds out for a minute"),
        (["--threads", "0"], "threads must be >= 1, but is 0; leave --threads out to divide the cores"),
        (["--processes", "0"], "processes must be numbers >= 1, but are [0]; write --processes 1 2"),
        (["--methods", "plain", "--processes", "1", "3"], "but 3 ranks divide neither the 64 examples nor the probes"),
        (["--record", "nowhere.json"], "record must be a JSON file of lowland plan, but nowhere.json cannot be read"),
        (["--runs", "nowhere"], "no run file at nowhere"),
    ],
)
def test_wrong_arguments(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *arguments]) != 0
    said: Any = capsys.readouterr()
    assert words in " ".join((said.out + said.err).split())
    assert "measuring" not in said.out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_task_and_a_method_of_your_own(tmp_path: Path) -> None:
    for name in ("own_task.py", "own_method.py"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    methods = ["plain", "sam", "sampa", "esam", "own_method.py:TwoRadii"]
    command = ["plan", "--task", "own_task.py:Text:width=8", "--methods", *methods, "--processes", "1", "2"]
    # in a process of its own, so that the method is not in the catalog of the tests that follow
    done = python(["-m", "lowland", *command, "--seconds", "1", "--threads", "1", "--batch-size", "8"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert [f"measuring: {what}" in done.stdout for what in ("memory", "1 process", "2 processes")] == [True] * 3
    found, contents = PlanRecord.read(tmp_path / "plan.json")
    assert (found.task, found.recipe["batch_size"], found.seconds) == ("own_task.py:Text:width=8", 8, 1.0)
    assert [each.ranks for each in found.surveys] == [1, 2]
    assert [each.examples for each in found.surveys] == [8, 8]
    assert {one.method for one in found.predictions} == {*methods} - {"esam"}
    assert "loss_fn must return one loss per example" in found.left_out["esam"]
    meshes = {(one.method, one.layout.probe, one.layout.data) for one in found.predictions}
    assert {("sampa", 1, 1), ("sampa", 2, 1), ("sampa", 1, 2), ("sam", 1, 2)} <= meshes
    assert ("sam", 2, 1) not in meshes
    assert all(one.memory is not None and one.memory > 0 for one in found.predictions)
    parts = [(one.seconds, one.passes + one.busy + one.exchange + one.own) for one in found.predictions]
    assert all(total == pytest.approx(seconds) for seconds, total in parts)
    assert "<svg" in (tmp_path / "plan.html").read_text(encoding="utf-8")
    assert contents["predictions"] == sorted(contents["predictions"], key=lambda one: round(one["seconds"], 9))
    assert not (ROOT / "plan.json").exists()


@pytest.mark.slow
def test_a_worker_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "examples" / "own_task.py").read_text(encoding="utf-8")
    fails = 'assert "TORCHELASTIC_RUN_ID" not in __import__("os").environ, "no net here"'  # on a rank only
    broken = text.replace("        return Net(", f"        {fails}\n        return Net(")
    (tmp_path / "own_task.py").write_text(broken, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    command = ["plan", "--task", "own_task.py:Text", "--methods", "plain", "--processes", "2", "--seconds", "1"]
    assert main(command) != 0
    said = capsys.readouterr().err
    assert "the 2 processes that measure must end without an error" in " ".join(said.split())
    assert "AssertionError: no net here" in " ".join(said.split())
    assert not (tmp_path / "plan.html").exists()


def test_an_error_that_is_not_known_decides_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = entries()
    for one in made["predictions"]:
        one["error"], one["bytes"] = None, None
    made["notes"] = ["Bytes and memory are not modeled."]
    path = tmp_path / "record.json"
    path.write_text(json.dumps(made))
    assert main(["plan", "--record", str(path), "--out", str(tmp_path / "page.html")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "± ?" in shown
    assert "note: Bytes and memory are not modeled." in shown
    assert "Bytes and memory are not modeled." in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("option", [["--methods", "banana"], ["--seconds", "5"], ["--processes", "1"]])
def test_a_record_is_given_alone(record: Path, option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--record", str(record), *option]) == 2
    assert f"record must be given without {option[0][2:]}" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--threads", "7"], "threads must be left out under torchrun, which has started the ranks, but is 7"),
        (["--processes", "1", "4"], "processes must be left out under torchrun, or be its 2, but are [1, 4]"),
    ],
)
def test_torchrun_decides_about_ranks_and_threads(
    option: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lowland.cli.plan.ranks", lambda: (0, 2))
    assert main(["plan", *option]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_seconds_are_finite(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--seconds", "inf"]) == 2
    assert "seconds must be above 0 and finite, but is inf" in " ".join(capsys.readouterr().err.split())
