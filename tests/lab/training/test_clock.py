from __future__ import annotations

import pytest
import torch

from lowland.lab.training.clock import Clock, typical


def test_only_steps_count(monkeypatch):
    times = iter([0.0, 1.0, 10.0, 12.0, 15.0])
    monkeypatch.setattr("lowland.lab.training.clock.time.perf_counter", lambda: next(times))
    clock = Clock(torch.device("cpu"))
    clock.start()
    clock.lap()
    clock.start()  # an evaluation took from 1 to 10
    clock.lap()
    clock.lap()
    assert clock.laps == [1.0, 2.0, 3.0]
    assert clock.seconds == 6.0


def test_typical_keeps_the_costly_steps_of_a_cycle():
    laps = [2.0, 1.0, 1.0, 1.0, 1.0] * 4
    gradients = [2, 1, 1, 1, 1] * 4
    assert typical(laps, gradients) == pytest.approx(1.2)
    laps[3] = 100.0  # somebody else used the machine
    assert typical(laps, gradients) == pytest.approx(1.2)


def test_no_steps_have_no_typical_time():
    assert typical([], []) is None
