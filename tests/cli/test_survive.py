"""The command that measures survival."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lowland.cli.main import main
from lowland.lab.survival import survive as survival
from lowland.report import read_all

TINY = ["--task", "digits", "--epochs", "1", "--limit", "4", "--threads", "1"]


def runs(folder: Path) -> None:
    assert main(["compare", *TINY, "--methods", "plain", "sam", "--seeds", "1", "--out", str(folder)]) == 0


def test_values_are_measured_kept_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs(tmp_path)
    capsys.readouterr()
    arguments = ["survive", str(tmp_path), "--bits", "4", "--noise", "0.1", "--draws", "2", "--examples", "50"]
    arguments += ["--forget", "permuted", "--forget-steps", "2"]
    assert main(arguments) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "[1/2] digits-mlp-plain-seed0" in shown
    assert "(kept)" not in shown
    for word in ("unchanged,", "bits,", "noise", "permuted,"):
        assert word in shown
    records = read_all([tmp_path])
    assert {len(record.measures) for record in records} == {2 + 4 + 4 + 4 + 2}
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("16 values (kept)") == 2
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path), "--out", str(page)]) == 0
    assert "Survival of the final weights" in page.read_text()
    assert "noise, relative to the weights" in page.read_text()


def test_unfinished_runs_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs(tmp_path)
    (folder,) = tmp_path.glob("*sam*-seed0-*/")
    lines = (folder / "run.jsonl").read_text().splitlines(keepends=True)
    (folder / "run.jsonl").write_text("".join(lines[:-1]))
    capsys.readouterr()
    assert main(["survive", str(tmp_path), "--bits", "4", "--noise"]) == 0
    shown = capsys.readouterr().out
    assert "has not finished, left out" in shown
    assert "6 values" in shown


def test_runs_that_cannot_be_measured_are_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(tmp_path)
    lost, *others = sorted(tmp_path.glob("*/run.jsonl"))
    shutil.rmtree(lost.parent / "checkpoints")
    capsys.readouterr()
    assert main(["survive", str(tmp_path), "--bits", "4", "--noise"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{lost.parent.name} left out, runs must have a checkpoint" in shown
    for other in others:
        shutil.rmtree(other.parent / "checkpoints")
    assert main(["survive", str(tmp_path), "--bits", "3", "--noise"]) == 2
    assert "runs must hold a finished run with its weights, but all are left out" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (["survive"], "runs must name at least one folder"),
    (["survive", "."], "no run.jsonl below"),
    (["survive", ".", "--bits", "9"], "bits must be an integer from 2 to 8, but is 9"),
    (["survive", ".", "--noise", "0"], "noise must be > 0, but is 0"),
])  # fmt: skip
def test_errors_are_one_clear_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_several_processes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(["survive", str(tmp_path)]) == 2
    assert "runs in one process" in capsys.readouterr().err


def test_ctrl_c_tells_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    runs(tmp_path)
    capsys.readouterr()

    def interrupted(model: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(survival, "deployed", interrupted)
    assert main(["survive", str(tmp_path), "--again"]) == 130
    assert f"to go on: lowland survive {tmp_path}\n" in capsys.readouterr().err
