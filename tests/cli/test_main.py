from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys

import pytest

from lowland.cli.main import main
from lowland.lab import names
from lowland.lab.training import run
from lowland.methods import METHODS

TINY = ["--task", "digits", "--epochs", "1", "--limit", "4", "--threads", "1"]


def test_compare_prints_table_verdict_and_page(tmp_path, capsys):
    arguments = ["compare", *TINY, "--methods", "plain", "sam:rho=0.1", "--seeds", "2", "--out", str(tmp_path)]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert re.search(r"\[4/4\] digits-mlp-sam_rho=0\.1-seed1-[0-9a-f]{8}: test accuracy", first)
    assert "2.00 / 2.00" in first
    (page,) = tmp_path.glob("digits-mlp-*.html")
    assert f"page: {page}" in first
    assert "sam" in page.read_text()
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("(kept)") == 4
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "again.html")]) == 0
    assert "digits, mlp" in capsys.readouterr().out
    assert (tmp_path / "again.html").exists()


def test_train_records_what_was_typed(tmp_path, capsys):
    arguments = ["train", *TINY, "--method", "looksam", "--seed", "3", "--name", "mine", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert f"run: {tmp_path / 'mine'}" in capsys.readouterr().out
    line = json.loads((tmp_path / "mine" / "run.jsonl").read_text().splitlines()[0])
    assert line["command"] == ["lowland", *arguments]
    assert line["seed"] == 3
    assert line["recipe"]["epochs"] == 1
    # the recipe's choice for small networks, and for a single epoch
    assert line["method"]["fields"]["alpha"] == 0.2


def test_a_recipe_has_the_defaults_of_its_task(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Passes over the training set, >= 1. (default: the task's)" in shown
    epochs = names.make("cifar10").recipe("resnet20").epochs
    assert epochs != names.make("digits").recipe("mlp").epochs
    assert main(["tasks", "cifar10", "--data", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"epochs={epochs}" in shown
    assert "sizes unknown, cifar10:" in shown


def test_tasks_are_listed_and_shown(capsys):
    assert main(["tasks"]) == 0
    shown = capsys.readouterr().out
    assert [line.partition(":")[0] for line in shown.splitlines() if not line.startswith(("Your", " "))] == [
        "chars", "cifar10", "cifar100", "cola", "digits", "fashion-mnist", "mrpc", "rte", "sst2", "trec"
    ]  # fmt: skip
    assert main(["tasks", "digits:noise=0.4"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("noise=0.4 Fraction of wrong", "1,297 for train, 500 for test", "metrics accuracy", "mlp, convnet",
                 "epochs=40, batch_size=64 (for mlp)", "source lowland's own"):  # fmt: skip
        assert text in shown


@pytest.mark.parametrize(("arguments", "message"), [
    (["train", "--method", "sanpa"], "unknown method 'sanpa': did you mean 'sampa'?"),
    (["train", "--method", "sampa:lam=2"], "lam must be in [0, 1], but is 2"),
    (["train", "--method", "sam:roh=1"], "did you mean 'rho'?"),
    (["train", "--method", "sam:rho=-1"], "rho must be a number >= 0, but is -1"),
    (["train", "--task", "digit"], "did you mean 'digits'?"),
    (["train", "--model", "mpl"], "did you mean 'mlp'?"),
    (["train", "--limit", "-3"], "limit must be a number > 0, but is -3.0"),
    (["train", "--device", "toaster"], "device must be cpu, cuda or auto, but is 'toaster'"),
    (["train", "--task", "digits:noise=1.5"], "noise must be in [0, 1), but is 1.5"),
    (["compare", "--seeds", "0"], "seeds must be an integer >= 1, but is 0"),
    (["train", "--method", "sam-on"], "the model must have a normalization layer for SAMON to perturb"),
    (["compare", "--methods", "all", "sam-on"], "the model must have a normalization layer for SAMON to perturb"),
    (["train", "--method", "momentum-sam", "--momentum", "0"], "momentum must be > 0"),
    (["methods", "sma"], "unknown method 'sma': did you mean 'sam'?"),
    (["train", "--shard"], "--shard divides the weights over several processes, but there is one"),
    (["train", "--lr", "-1"], "lr must be a number > 0, but is -1.0"),
    (["train", "--select", "best"], "select needs a validation part"),
    (["train", "--method", "plain@epoch=3"], "unknown recipe field 'epoch': did you mean 'epochs'?"),
    (["train", "--task", "digits", "--model", "no_such.py:Net"], "a model must be in a file that is there"),
    (["report"], "runs must name at least one folder"),
])  # fmt: skip
def test_errors_are_one_clear_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.startswith("lowland: error: ")
    assert shown.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["train", *TINY, "--out", str(tmp_path / "file")]) == 2
    assert "Not a directory" in capsys.readouterr().err


def test_missing_data_files(tmp_path, capsys):
    assert main(["train", "--task", "cifar10", "--data", str(tmp_path), "--out", str(tmp_path / "runs")]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_the_traceback_is_there_on_request(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWLAND_DEBUG", "1")
    with pytest.raises(Exception, match="unknown method"):
        main(["train", "--method", "sanpa", "--out", str(tmp_path)])


def test_a_missing_extra(monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tyro" else real(name))
    assert main(["methods"]) == 2
    assert capsys.readouterr().err == "lowland: error: tyro is not installed; run: pip install 'lowland[lab]'\n"
    assert main(["--help"]) == 0
    assert "pip install 'lowland[lab]'" in capsys.readouterr().out


def test_ctrl_c_tells_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupted(self, batch, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(run.Trainer, "step", interrupted)
    arguments = ["train", *TINY, "--method", "sampa:rho=0.1", "--out", str(tmp_path)]
    assert main(arguments) == 130
    assert f"to go on: lowland {' '.join(arguments)} --resume" in capsys.readouterr().err


@pytest.mark.slow
def test_a_signal_to_the_process(tmp_path):
    arguments = ["train", "--task", "digits", "--epochs", "2000", "--threads", "1", "--checkpoint-every", "5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lowland", *arguments, "--out", str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.glob("*/checkpoints/step-?????????")):
        assert process.poll() is None
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert f"to go on: lowland {' '.join(arguments)} --out {tmp_path} --resume" in errors


@pytest.mark.slow
def test_methods_lists_all_with_measured_costs(capsys):
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert set(METHODS) <= set(rows)
    assert rows["sampa"].split()[-6:-3] == ["2.00", "1.00", "1.0"]
    assert rows["looksam"].split()[-6:-4] == ["1.20", "1.20"]


def test_one_method_in_full(capsys):
    assert main(["methods", "sampa"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Reference:" in shown
    assert "2.00 gradients per step in total, 1.00 one after another" in shown
