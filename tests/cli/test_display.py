from __future__ import annotations

import io

import pytest
from rich.console import Console

from lowland.cli import display as module
from lowland.cli.display import Bars, Lines, display, state
from lowland.lab.tasks.digits import Digits
from lowland.lab.training.progress import Update

END = {"test": {"accuracy": 0.9512}, "epochs": 3, "seconds": 75.0}


def update(fraction: float) -> Update:
    return Update("run", fraction, 10, 1, 0.25, "test accuracy 90.00 %", 123.0)


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), width=120, force_terminal=terminal)


def test_the_right_one():
    assert type(display(console(True), 1)) is Bars
    assert type(display(console(False), 1)) is Lines


def test_lines_do_not_flood(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    out = console(False)
    with display(out, 2, Digits.metrics) as shown:
        shown.begin("run")
        for i in range(101):
            now[0] = i / 4  # 25 seconds in 100 updates
            shown.update(update(i / 100))
        shown.end("run", END, kept=False)
    lines = out.file.getvalue().splitlines()
    assert lines == [
        "run: 60 %, epoch 2, loss 0.250, test accuracy 90.00 %, 123 steps/s, 10.0 s left",
        "[1/2] run: test accuracy 95.12 % after 3 epochs, 1:15 min of training",
    ]


def test_bars_leave_a_line_for_every_run():
    out = console(True)
    with display(out, 2, Digits.metrics) as shown:
        shown.begin("run")
        shown.update(update(0.5))
        shown.end("run", END, kept=True)
    assert "[1/2] run: test accuracy 95.12 % after 3 epochs, 1:15 min of training (kept)" in out.file.getvalue()


@pytest.mark.parametrize("accuracy", [None, "test accuracy 90.00 %"])
def test_a_state_without_what_is_not_known(accuracy):
    text = state(Update("run", 0.5, 10, 0, 0.25, accuracy, 99.0), None)
    assert text == "epoch 1, loss 0.250, " + ("test accuracy 90.00 %, " if accuracy else "") + "99 steps/s"


def test_the_bar_of_runs_moves_while_runs_are_kept():
    with Bars(console(True), 3, Digits.metrics) as shown:
        for count in (1, 2):
            shown.end("run", END, kept=True)
            (runs,) = [task for task in shown._progress.tasks if task.description == "runs"]
            assert (runs.completed, runs.fields["state"]) == (count, f"{count}/3")
