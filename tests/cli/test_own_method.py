"""A method of the user's own, from an empty folder; trainings that break down; what is refused before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forked import python

from lowland.cli.main import main

TINY = ["--task", "digits", "--limit", "4", "--threads", "1"]
USAM = (Path(__file__).parents[1] / "methods" / "test_outside.py").read_text(encoding="utf-8").split("'''")[1]


@pytest.mark.slow
def test_a_method_from_a_file_is_compared_and_never_mistaken_for_another(tmp_path: Path) -> None:
    file = tmp_path / "usam.py"
    file.write_text(USAM, encoding="utf-8")
    command = ["compare", *TINY, "--methods", "plain", "usam.py:USAM:theta=0.4", "--seeds", "1"]
    done = python(["-m", "lowland", *command], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usam.py:USAM" in done.stdout.replace("\n", "")
    (config,) = [
        json.loads(path.read_text(encoding="utf-8").splitlines()[0])
        for path in (tmp_path / "runs").glob("*usam*/run.jsonl")
    ]
    assert config["method"]["fields"]["theta"] == 0.4
    assert config["sources"]["method"]
    assert python(["-m", "lowland", *command], tmp_path).stdout.count("(kept)") == 2
    (page,) = (path.read_text(encoding="utf-8") for path in (tmp_path / "runs").glob("digits-mlp-*.html"))
    assert "lowland " + " ".join(command) in page.replace("&#39;", "'")
    file.write_text(USAM.replace("self.rho * self.theta", "self.rho"), encoding="utf-8")
    changed = python(["-m", "lowland", *command], tmp_path)
    assert changed.returncode == 0
    assert changed.stdout.count("(kept)") == 1  # plain
    assert "SAM without the norm." in python(["-m", "lowland", "methods", "usam.py:USAM"], tmp_path).stdout


@pytest.mark.slow
def test_a_training_that_breaks_down_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--task", "digits", "--lr", "1e6", "--epochs", "8", "--threads", "1", "--out", str(tmp_path)]
    assert main(["compare", *arguments, "--methods", "plain", "sam", "--seeds", "2"]) == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "plain diverged in 2 of 2 seeds and sam diverged in 2 of 2 seeds." in shown
    assert "Nothing can be compared; a lower learning rate" in shown
    assert "told apart" not in shown
    assert "±" not in shown.partition("Mean over")[0]
    for path in tmp_path.glob("*/run.jsonl"):
        end = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
        assert (end["kind"], end["diverged"]) == ("end", True)
        assert end["epochs"] < 8  # there is nothing to wait for
    assert main(["train", *arguments, "--method", "plain", "--name", "again"]) == 3
    assert "diverged after" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare", "--methods", "sam", "sam:rho=0.05"], "methods must differ, but sam and sam:rho=0.05 are the same"),
        (["compare", "--methods", "sam,plain"], "has a comma; write sam plain"),
        (["train", "--name", "../x"], "--name must be the name of a folder in --out, but is '../x'"),
        (["train", "--name", ""], "--name must be the name of a folder in --out, but is ''"),
    ],
)
def test_refused(arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, *TINY, "--out", str(tmp_path / "runs")]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.jsonl"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lowland 0.")


def test_report_leaves_foreign_files_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *TINY, "--out", str(tmp_path)]) == 0
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "run.jsonl").write_text('{"loss": 1}\n', encoding="utf-8")
    with pytest.warns(UserWarning, match=r"left out: .*foreign/run\.jsonl is not a run file"):
        assert main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    assert "plain" in capsys.readouterr().out
