"""A study of one's own: the next run is chosen by the record of the last one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from forked import Torchrun

from lowland import lab

HALVING = '''
import sys
from dataclasses import replace
from pathlib import Path

from lowland import lab


class Halving:
    """The learning rate is halved, as long as the training loss falls, three times at most."""

    def __init__(self, base):
        self.next, self.best, self.left, self.told = base, float("inf"), 3, []

    def ask(self):
        return self.next

    def tell(self, run, record):
        loss = record.epochs[-1].train_loss
        self.told.append((run.recipe.lr, loss))
        self.left -= 1
        half = replace(run.recipe, lr=run.recipe.lr / 2)
        self.next = replace(run, recipe=half) if loss < self.best and self.left else None
        self.best = min(loss, self.best)
'''

SCRIPT = (
    """
import atexit
import os
import sys

# Registered first, so called last, before the interpreter is finalized: a thread of gloo would abort it now and then.
task_names = lambda: [open(f"/proc/self/task/{t}/comm").read() for t in os.listdir("/proc/self/task")]
atexit.register(lambda: sys.stdout.write(f"gloo {sum('gloo' in name for name in task_names())}\\n"))
"""
    + HALVING
    + """
task = lab.load("digits")
recipe = task.recipe("mlp").replace(epochs=1, lr=64.0)
steps = lab.Budget(kind="steps", limit=5)
base = lab.RunConfig(task=task, model="mlp", method="sam", seed=0, recipe=recipe, budget=steps)
study = Halving(base)
records = lab.run_study(study, out=sys.argv[1])
sys.stdout.write(f"told {study.told} {[r.recipe['lr'] for r in records]}\\n")  # one write: ranks share the pipe
"""
)


def said(output: str) -> list[str]:
    """What the ranks say that they were told."""
    if Path("/proc/self/task").is_dir():
        assert [line for line in output.splitlines() if line.startswith("gloo")] == ["gloo 0", "gloo 0"]
    return [line for line in output.splitlines() if line.startswith("told")]


def test_the_next_run_follows_from_the_record_of_the_last(config, tmp_path, capsys):
    scope: dict = {}
    exec(HALVING, scope)  # the same study as the script's
    study = scope["Halving"](replace(config, method="sam"))
    records = lab.run_study(study, out=tmp_path)
    rates = [rate for rate, _ in study.told]
    assert rates == [config.recipe.lr / 2**i for i in range(len(rates))] == [r.recipe["lr"] for r in records]
    assert 2 <= len(rates) <= 3
    assert len(list(tmp_path.iterdir())) == len(rates)
    assert capsys.readouterr().err.splitlines()[0].startswith("[1] ")

    again = scope["Halving"](replace(config, method="sam"))
    assert lab.run_study(again, out=tmp_path) == records
    assert again.told == study.told
    assert capsys.readouterr().err == ""  # all runs were kept


@pytest.mark.slow
def test_every_rank_is_told_the_same_records(tmp_path):
    script = tmp_path / "halving.py"
    script.write_text(SCRIPT)
    command = [str(script), str(tmp_path / "runs")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, *command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told = said(done.stdout)
    assert len(told) == 2
    assert told[0] == told[1]
    again = Torchrun(command).ended()
    assert [rank.returncode for rank in again] == [0, 0], [rank.stderr for rank in again]
    assert said("".join(rank.stdout for rank in again)) == told
    assert not any("[1]" in rank.stderr for rank in again)
