"""The promise of --resume against the real thing: processes that SIGKILL ends at random moments."""

from __future__ import annotations

import json
import random
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from forked import python, server

from lowland.cli.main import main

KILLS = 10  # in a training of 880 steps, of which they let about 240 pass where nothing else runs
ARGS = ["train", "--task", "digits", "--method", "sampa", "--epochs", "40", "--threads", "1", "--name", "run"]


def start(folder: Path) -> BaseProcess:
    # every child is a process of its own
    child = server().Process(target=main, args=([*ARGS, "--checkpoint-every", "5", "--out", str(folder), "--resume"],))
    child.start()
    return child


def end(folder: Path) -> dict:
    line = json.loads((folder / "run" / "run.jsonl").read_text().splitlines()[-1])
    assert line["kind"] == "end"
    return line


def saved(folder: Path) -> set[str]:
    return {path.name for path in (folder / "run" / "checkpoints").glob("step-?????????")}


@pytest.mark.slow
def test_ten_kills_leave_no_trace(tmp_path):
    rng = random.Random(0)
    for number in range(KILLS):
        before = saved(tmp_path / "killed")
        child = start(tmp_path / "killed")
        if number % 5 == 0:  # while it starts, loads or measures
            child.join(rng.uniform(0, 1.0))
        else:  # in a step, an evaluation or the writing of a checkpoint
            while child.is_alive() and saved(tmp_path / "killed") <= before:
                child.join(0.002)
            child.join(rng.uniform(0, 0.05))
        child.kill()
        child.join()
        assert child.exitcode == -9, "the run was over before it could be killed"
    child = start(tmp_path / "killed")
    child.join()
    assert child.exitcode == 0
    kinds = [json.loads(x)["kind"] for x in (tmp_path / "killed" / "run" / "run.jsonl").read_text().splitlines()]
    assert kinds.count("resumed") >= KILLS * 3 // 5

    assert python(["-m", "lowland", *ARGS, "--out", str(tmp_path / "whole")]).returncode == 0
    assert end(tmp_path / "killed")["weights_sha256"] == end(tmp_path / "whole")["weights_sha256"]
