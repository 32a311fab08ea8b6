"""The runner of experiments: what it runs is planned and parses; an interruption loses nothing; what ended stays."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import tyro

from lowland.cli.main import _commands

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "evidence.py"


@pytest.fixture(scope="module")
def evidence() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evidence", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["evidence"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_experiment_is_in_the_plan(evidence: ModuleType) -> None:
    headings = re.findall(r"^## \d.*$", (ROOT / "docs" / "plan_of_experiments.md").read_text(), re.MULTILINE)
    planned = {name for heading in headings for name in re.findall("`(.+?)`", heading)}
    names = [experiment.name for experiment in evidence.EXPERIMENTS]
    assert len(names) == len(set(names))
    assert set(names) <= planned


def test_every_command_parses(evidence: ModuleType) -> None:
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)
    commands = [command for experiment in evidence.EXPERIMENTS for command in experiment.commands]
    assert commands
    for command in commands:
        parsed = tyro.cli(_commands(), args=shlex.split(command.format(out="runs")), config=config)
        assert type(parsed).__name__.lower() == command.split()[0]


def test_the_list_says_what_has_ended(evidence: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "done.json").write_text(json.dumps({"seconds": [1000.0, 234.0]}))
    assert evidence.main(["--list", "--out", str(tmp_path), "cifar10"]) == 0
    assert capsys.readouterr().out.startswith("cifar10: ended, 1,234 s\n  lowland compare --task cifar10")
    with pytest.raises(SystemExit):
        evidence.main(["nothing"])
    assert "there is no experiment 'nothing'; there are cifar10" in capsys.readouterr().err


@pytest.mark.slow
def test_two_experiments_at_once_and_a_command_that_fails(evidence: ModuleType, tmp_path: Path) -> None:
    short = "train --limit 2 --threads 1 --resume --out {out} --method"
    good = evidence.Experiment("good", (f"{short} plain", f"{short} sam"))
    bad = evidence.Experiment("bad", (f"{short} none", f"{short} plain"))
    said: list[str] = []
    assert evidence.run([good, bad], tmp_path, 2, said.append) == 1
    done = json.loads((tmp_path / "good" / "done.json").read_text())
    assert [c.rpartition(" ")[2] for c in done["commands"]] == ["plain", "sam"]
    assert len(done["seconds"]) == 2
    assert len(list((tmp_path / "good").glob("*/run.jsonl"))) == 2
    assert not (tmp_path / "bad" / "done.json").exists()
    assert any("bad: the command ended with 2" in line for line in said)
    assert "unknown method" in (tmp_path / "bad" / "log.txt").read_text()


@pytest.mark.slow
def test_a_sweep_is_followed_by_the_comparison_that_it_names(evidence: ModuleType, tmp_path: Path) -> None:
    sweep = (
        "sweep --task digits --methods plain@lr=0.05..0.4:log sam:rho=0.02..0.5:log --trials 2 --limit 3 "
        "--validation 0.1 --threads 1 --out {out}"
    )
    (tmp_path / "tuned").mkdir()
    earlier = {"command": "lowland sweep --task digits", "comparison": ["lowland compare --methods none"]}
    (tmp_path / "tuned" / "sweep-of-an-earlier-plan.json").write_text(json.dumps(earlier))
    assert evidence.run([evidence.Experiment("tuned", (sweep,), tuned=True)], tmp_path, 1, lambda line: None) == 0
    commands = json.loads((tmp_path / "tuned" / "done.json").read_text())["commands"]
    assert [command.split()[1] for command in commands] == ["sweep", "compare"]
    assert "--out runs" in commands[1]
    assert len(list((tmp_path / "tuned").glob("*seed[0-4]-*/run.jsonl"))) == 10
    assert len(list((tmp_path / "tuned").glob("*seed1000-*/run.jsonl"))) == 4


PROGRAM = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("evidence", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["evidence"] = module
spec.loader.exec_module(module)
long = "compare --methods plain sam --epochs 80 --seeds 1 --threads 1 --checkpoint-every 20 --out {out}"
module.EXPERIMENTS = (module.Experiment("long", (long,)),)
sys.exit(module.main(["--out", sys.argv[2]]))
"""


@pytest.mark.slow
def test_an_interruption_is_gone_on_from(tmp_path: Path) -> None:
    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", PROGRAM, str(SCRIPT), str(tmp_path)], env=dict(os.environ))

    first = start()
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("long/*/checkpoints/step-*/manifest.json")):
        assert time.monotonic() < deadline, "no checkpoint within two minutes"
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=60) == 130
    assert not (tmp_path / "long" / "done.json").exists()
    (before,) = json.loads((tmp_path / "long" / "spent.json").read_text()).values()
    begun = time.monotonic()
    second = start()
    assert second.wait(timeout=300) == 0
    (seconds,) = json.loads((tmp_path / "long" / "done.json").read_text())["seconds"]
    assert before < seconds < before + time.monotonic() - begun  # the interrupted call counts
    assert not (tmp_path / "long" / "spent.json").exists()
    lines = [json.loads(line) for file in tmp_path.glob("long/*/run.jsonl") for line in file.read_text().splitlines()]
    kinds = [line["kind"] for line in lines]
    assert kinds.count("end") == 2
    assert "resumed" in kinds
