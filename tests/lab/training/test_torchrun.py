"""The real thing: torchrun, ranks that SIGKILL ends at random moments, and signals to all of them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from forked import Torchrun

KILLS = int(os.environ.get("LOWLAND_KILLS", "3"))  # 20 for the record, see docs/parallel.md
ARGS = ["train", "--task", "digits", "--method", "sampa", "--mesh", "probe=2", "--threads", "1"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(folder: Path, *options: str) -> list[str]:
    return ["-m", "lowland", *ARGS, *options, "--name", "run", "--out", str(folder)]


def start(folder: Path, *options: str, restarts: int = 0) -> subprocess.Popen[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*torchrun, "--max-restarts", str(restarts), *command(folder, *options)],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, err


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    except OSError:
        return []


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "run.jsonl").read_text().splitlines()]


def step_of(folder: Path) -> int:
    return max((int(p.name[5:14]) for p in (folder / "run" / "checkpoints").glob("step-?????????")), default=0)


@pytest.mark.slow
def test_killed_ranks_are_restarted_and_leave_no_trace(tmp_path: Path) -> None:
    if not Path("/proc/self/task").exists():
        pytest.skip("finds the ranks through /proc")
    options = ["--epochs", str(10 + 5 * KILLS), "--checkpoint-every", "5"]
    draw = random.Random(0)
    process = start(tmp_path / "killed", *options, restarts=KILLS)
    deadline = time.monotonic() + 60 * KILLS
    for number in range(KILLS):
        reached, known = step_of(tmp_path / "killed"), set(ranks_of(process))
        # Most kills hit a step, an evaluation or the writing of a checkpoint; every fourth one the start.
        while number % 4 != 3 and step_of(tmp_path / "killed") <= reached and process.poll() is None:
            assert time.monotonic() < deadline, "a run did not go on after a kill"
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.4))
        assert process.poll() is None, f"the run was over before it could be killed: {ended(process)[2][-6000:]}"
        victims = ranks_of(process)
        os.kill(draw.choice(victims), signal.SIGKILL)
        known = set(victims)
        while process.poll() is None and (not ranks_of(process) or known & set(ranks_of(process))):
            assert time.monotonic() < deadline, "torchrun did not start the ranks again"
            time.sleep(0.02)
    code, _, err = ended(process)
    assert code == 0, err[-3000:]
    told = lines(tmp_path / "killed")
    assert [line["kind"] for line in told].count("resumed") >= KILLS // 2
    ranks = [end.returncode for end in Torchrun(command(tmp_path / "whole", *options)).ended()]
    assert ranks == [0, 0]
    assert told[-1]["weights_sha256"] == lines(tmp_path / "whole")[-1]["weights_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_ranks_with_a_checkpoint(tmp_path: Path, signum: signal.Signals) -> None:
    options = ["--epochs", "200", "--checkpoint-every", "20"]
    process = start(tmp_path, *options)
    until = time.monotonic() + 60
    while step_of(tmp_path) == 0 and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signum)
    code, _, err = ended(process, 60)
    assert code != 0
    assert err.count("to go on: lowland train") == 1  # one rank speaks
    kinds = [line["kind"] for line in lines(tmp_path)]
    assert kinds[0] == "config"
    assert "end" not in kinds
    assert step_of(tmp_path) > 0


@pytest.mark.slow
def test_only_one_rank_prints_and_errors_name_the_rank(tmp_path: Path) -> None:
    done = Torchrun(command(tmp_path, "--epochs", "1")).ended()
    assert [end.returncode for end in done] == [0, 0], [end.stderr[-3000:] for end in done]
    assert ["run: " in end.stdout for end in done] == [True, False]
    again = Torchrun(command(tmp_path, "--epochs", "1")).ended()  # the folder holds this run
    assert [end.returncode for end in again] == [2, 2]
    for rank, end in enumerate(again):
        assert end.stderr.startswith(f"lowland: rank {rank}: error: out must be a folder without this run")
        assert "Traceback" not in end.stderr
