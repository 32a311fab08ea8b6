from __future__ import annotations

import re
import shlex

import pytest

from lowland.cli.main import main
from lowland.lab.training import run
from lowland.report import read_all
from lowland.runs.sweep import read

TINY = ["--task", "digits", "--epochs", "2", "--limit", "6", "--threads", "1", "--validation", "0.1"]
METHODS = ["--methods", "plain@lr=0.05..0.2:log", "sam:rho=0.05|0.1@lr=0.1|0.2"]


@pytest.mark.slow
def test_a_sweep_prints_trials_table_and_the_comparison_that_follows(tmp_path, capsys):
    out = ["--out", str(tmp_path), "--momentum", "0.5", "--nesterov", "False", "--select", "best"]
    arguments = ["sweep", *TINY, *METHODS, "--trials", "3", *out]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^\[1/6\] trial 0 of plain@lr=0\.\d+: validation accuracy .* %, the best so far$", shown, re.M)
    assert re.search(r"^\[6/6\] trial 2 of sam:rho=0\.\d+@lr=0\.\d: validation accuracy", shown, re.M)
    assert "test accuracy" not in shown
    assert "test loss" not in shown
    (record,) = (read(path) for path in tmp_path.glob("sweep-digits-mlp-*.json"))
    (page,) = tmp_path.glob("sweep-digits-mlp-*.html")
    assert f"page: {page}" in shown
    assert record.command == shlex.join(["lowland", *arguments])
    assert record.command in page.read_text().replace("&#39;", "'")
    (line,) = record.comparison
    assert line in shown.splitlines()
    assert all(trial.text in line for _, trial in record.winners())

    program, *compared = shlex.split(line)
    assert program == "lowland"
    compared[compared.index("--seeds") + 1] = "1"
    assert main(compared) == 0
    runs = [r for r in read_all([tmp_path]) if r.seed == 0]
    assert {r.contestant for r in runs} == {trial.text for _, trial in record.winners()}
    swept = {r.contestant: r for r in read_all([tmp_path]) if r.seed == 1000}
    for each in runs:  # the same run, but for its seed
        assert (each.recipe, each.budget, each.select) == (
            swept[each.contestant].recipe, swept[each.contestant].budget, swept[each.contestant].select
        )  # fmt: skip


@pytest.mark.slow
def test_the_same_command_keeps_what_is_done(tmp_path, capsys):
    arguments = ["sweep", *TINY, "--method", "sam:rho=0.05..0.1", "--trials", "2", "--out", str(tmp_path)]
    assert main(arguments) == 0
    (path,) = tmp_path.glob("sweep-*.json")
    before = read(path).contestants
    capsys.readouterr()
    assert main(arguments) == 0
    assert "trial 0 of" not in capsys.readouterr().out
    assert read(path).contestants == before
    assert main(["report", str(path), "--out", str(tmp_path / "again.html")]) == 0
    shown = capsys.readouterr().out
    assert "has the best validation accuracy" in shown
    assert (tmp_path / "again.html").read_text() == path.with_suffix(".html").read_text()
    assert main(["report", str(path), str(tmp_path)]) == 2
    assert "runs must be the record of one sweep alone" in capsys.readouterr().err


def test_a_password_is_in_no_file(tmp_path, capsys):
    storage = f"sqlite://me:secret@/{tmp_path}/trials.db"  # a URL that sqlite refuses, as its reason says
    arguments = ["sweep", *TINY, "--method", "sam:rho=0.05|0.1", "--storage", storage, "--out", str(tmp_path)]
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert "storage must be a database that can be opened" in shown
    assert "secret" not in shown


def test_ctrl_c_tells_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupted(self, batch, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(run.Trainer, "step", interrupted)
    arguments = ["sweep", *TINY, *METHODS, "--trials", "1", "--out", str(tmp_path)]
    assert main(arguments) == 130
    assert f"to go on: {shlex.join(['lowland', *arguments])}" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(arguments) == 0
    (path,) = tmp_path.glob("sweep-*.json")
    assert [len(each.trials) for each in read(path).contestants] == [1, 1]


def test_only_diverged_trials_are_an_exit_code(tmp_path, capsys):
    arguments = ["sweep", *TINY, "--method", "plain@lr=1e30|1e31", "--trials", "2", "--out", str(tmp_path)]
    assert main(arguments) == 3
    shown = capsys.readouterr().out
    assert "trial 0 of plain@lr=1e3" in shown
    assert ": diverged" in shown
    assert "No trial has finished" in shown
    assert "lowland compare" not in shown


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "methods must name at least one method"),
    (["--method", "plain"], "every method of a sweep must have a range"),
    (["--method", "sam:rho=0.1..0.2", "--validation", "0"], "a sweep needs a validation part"),
    (["--method", "sam:rho=0.2..0.1"], "rho must be a range with low < high"),
    (["--method", "sam:rho=0.1..0.2", "--grid", "3"], "grid needs the sampler grid"),
    (["--method", "sam:rho=0.1..0.2", "--budget", "seconds"], "limit must be given for a sweep whose budget is in"),
    (["--method", "sam:rho=0.1..0.2", "--task", "digits:noise=0.1..2.0"], "noise must be in [0, 1), but is 2"),
    (["--method", "sam:rho=0.1..0.2", "--first-seed", "0"], "first_seed must be an integer >= 5, but is 0"),
])  # fmt: skip
def test_errors_are_one_clear_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "--validation", "0.1", *arguments]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.startswith("lowland: error: ")
    assert shown.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_help_explains_ranges(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "--help"])
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in ("rho=0.02..0.5:log", "batch_size=32|64|128", "the test part chooses nothing", "--sampler"):
        assert text in shown
