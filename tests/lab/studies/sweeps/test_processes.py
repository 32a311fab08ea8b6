"""Several processes, and processes that are killed: every trial is trained once, and none is lost."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from forked import Python, Torchrun, python

from lowland.lab.studies.sweeps.locks import Locks
from lowland.runs.file import history
from lowland.runs.sweep import SweepRecord, read

PATIENCE = 60.0  # seconds


def command(*more: str, trials: int = 4, out: str = "runs") -> list[str]:
    methods = ["--methods", "sam:rho=0.01..0.1:log@lr=0.01..0.2:log"]
    basic = ["--task", "pulled.py:Gap", "--trials", str(trials), "--threads", "1", "--device", "cpu", "--out", out]
    return ["-m", "lowland", "sweep", *basic, *methods, "--checkpoint-every", "2", "--epochs", "5", *more]


def record(out: str = "runs") -> SweepRecord:
    (path,) = Path(out).glob("sweep-*.json")
    return read(path)


def weights(made: SweepRecord, out: str = "runs") -> list[Any]:
    """The hashes of the weights of all runs, in the order of the trials."""
    return [
        (history(Path(out, name)).end or {})["weights_sha256"]
        for each in made.contestants for trial in each.trials for name in trial.runs
    ]  # fmt: skip


def comparable(made: SweepRecord) -> list[Any]:
    """The trials without what a kill may change."""
    return [vars(trial) for each in made.contestants for trial in each.trials]


def wait_for(pattern: str, count: int = 1) -> None:
    deadline = time.monotonic() + PATIENCE
    while len([*Path().glob(pattern)]) < count:
        assert time.monotonic() < deadline, f"no {pattern}"
        time.sleep(0.01)


def resumptions() -> list[int]:
    """How many times each run was resumed."""
    return [
        sum(json.loads(line)["kind"] == "resumed" for line in path.read_text().splitlines())
        for path in Path("runs").glob("*/run.jsonl")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_sweep_goes_on_where_it_was_stopped(place: Path, signum: signal.Signals) -> None:
    started = Python(command(), SLOW="0.05")
    wait_for("runs/*/run.jsonl", 2)
    wait_for("runs/*/checkpoints/step-*[0-9]", 3)  # two of the first run, and one of the second
    assert started.process.pid is not None
    os.kill(started.process.pid, signum)
    ended = started.ended()
    if signum == signal.SIGKILL:
        assert ended.returncode == -signal.SIGKILL
    else:
        assert ended.returncode == 128 + signum
        assert f"stopped by {signum.name}; to go on: lowland sweep --task pulled.py:Gap" in ended.stderr
    finished = [trial.outcome for trial in record().contestants[0].trials]
    assert finished == ["finished"]
    again = python(command())
    assert again.returncode == 0, again.stderr
    assert "[2/4] trial 1 of sam" in again.stdout
    assert "[1/4]" not in again.stdout
    assert sorted(resumptions()) == [0, 0, 0, 1]
    whole = python(command(out="whole"))
    assert whole.returncode == 0, whole.stderr
    assert comparable(record()) == comparable(record("whole"))
    assert weights(record()) == weights(record("whole"), "whole")
    assert len(set(weights(record()))) == 4


@pytest.mark.slow
def test_two_processes_share_the_trials(place: Path) -> None:
    both = [Python(command(trials=6), SLOW="0.02") for _ in range(2)]
    ended = [process.ended() for process in both]
    assert [process.returncode for process in ended] == [0, 0], [process.stderr for process in ended]
    made = record()
    assert made.complete()
    assert [trial.outcome for trial in made.contestants[0].trials] == ["finished"] * 6
    assert len({trial.runs for trial in made.contestants[0].trials}) == 6
    assert len([*Path("runs").glob("*/run.jsonl")]) == 6
    assert resumptions() == [0] * 6
    shown = [{n for n in range(6) if f"trial {n} of" in process.stdout.split("contestant")[0]} for process in ended]
    assert shown[0] | shown[1] == {*range(6)}
    assert not shown[0] & shown[1]
    assert shown[0]
    assert shown[1]


@pytest.mark.slow
def test_a_living_process_takes_over_the_trial_of_a_killed_one(place: Path) -> None:
    doomed = Python(command(), SLOW="0.05")
    wait_for("runs/*/checkpoints/step-*4")
    other = Python(command(), SLOW="0.02")
    wait_for("runs/*/run.jsonl", 2)
    assert doomed.process.pid is not None
    os.kill(doomed.process.pid, signal.SIGKILL)
    doomed.ended()
    ended = other.ended()
    assert ended.returncode == 0, ended.stderr
    made = record()
    assert [trial.outcome for trial in made.contestants[0].trials] == ["finished"] * 4
    assert len([*Path("runs").glob("*/run.jsonl")]) == 4
    assert max(resumptions()) == 1


@pytest.mark.slow
def test_equal_points_in_two_processes_train_once(place: Path) -> None:
    methods = ["--methods", "plain@lr=0.1|0.2", "--sampler", "random"]
    basic = ["--task", "pulled.py:Gap", "--trials", "8", "--threads", "1", "--device", "cpu", "--out", "runs"]
    both = [Python(["-m", "lowland", "sweep", *basic, *methods], SLOW="0.02") for _ in range(2)]
    ended = [process.ended() for process in both]
    assert [process.returncode for process in ended] == [0, 0], [process.stderr for process in ended]
    assert len([*Path("runs").glob("*/run.jsonl")]) == 2
    assert [trial.outcome for trial in record().contestants[0].trials] == ["finished"] * 8
    assert all(path.read_text().count('"kind": "end"') == 1 for path in Path("runs").glob("*/run.jsonl"))
    assert resumptions() == [0, 0]


@pytest.mark.slow
def test_all_ranks_run_the_same_trials(place: Path) -> None:
    pruned = ["--pruner", "median"]
    ranks = Torchrun(command(*pruned, trials=8)).ended()
    assert [rank.returncode for rank in ranks] == [0, 0], [rank.stderr for rank in ranks]
    made = record()
    assert len(made.contestants[0].trials) == 8
    assert "page: " in ranks[0].stdout
    assert ranks[1].stdout == ""
    alone = python(command(*pruned, trials=8, out="alone"))
    assert alone.returncode == 0, alone.stderr
    ours, theirs = (each.contestants[0].trials for each in (made, record("alone")))
    assert [trial.values for trial in ours] == [trial.values for trial in theirs]
    assert [trial.outcome for trial in ours] == [trial.outcome for trial in theirs]
    assert "pruned" in {trial.outcome for trial in ours}


def test_a_lock_ends_with_its_process(place: Path) -> None:
    Path("hold.py").write_text(
        "import sys, time\nfrom pathlib import Path\nfrom lowland.lab.studies.sweeps.locks import Locks\n"
        "locks = Locks(Path('.'))\nassert locks.take('a')\nPath('held').touch()\ntime.sleep(100)\n"
    )
    process = Python(["hold.py"])
    wait_for("held")
    locks = Locks(place)
    assert not locks.take("a")
    assert locks.take("b")
    assert process.process.pid is not None
    os.kill(process.process.pid, signal.SIGKILL)
    process.ended()
    assert locks.take("a")
    assert locks.token() == locks.token() != ""
    locks.close()
