from __future__ import annotations

import math

import numpy as np
import pytest

from lowland.core.errors import ArgumentError
from lowland.planner.simulation.training import Failures, Training, train

ONE = np.array([1.0])


def mean_of(failures: Failures, devices: int, count: int, seeds: int) -> tuple[float, float]:
    """Seconds for each second of steps, and its standard error."""
    found = [train(ONE, count, failures, devices, seed=seed).seconds / count for seed in range(seeds)]
    return float(np.mean(found)), float(np.std(found) / seeds**0.5)


def test_without_failures_only_checkpoints_cost() -> None:
    assert train(ONE, 100, Failures(), 1) == Training(100.0, 100.0, 0, 1, 0.0)
    found = train(ONE, 100, Failures(interval=30.0, checkpoint=0.5), 1)
    assert found == Training(102.0, 100.0, 0, 4, 0.0)  # after 30, 60, 90 and 100 steps
    times = np.array([1.0, 3.0])
    assert train(times, 4000, Failures(), 1).seconds == pytest.approx(8000, rel=0.05)  # steps are drawn


def test_the_complete_formula_holds() -> None:
    # Every 40 s on average, one of 50 devices fails; parts of 20 s, checkpoints of 3 s, restarts of 5 s.
    failures = Failures(mtbf=2000.0, interval=20.0, checkpoint=3.0, restart=5.0)
    mean, error = mean_of(failures, 50, 2000, 60)
    assert error < 0.02
    assert abs(mean - failures.expected(50)) < 4 * error
    assert abs(mean - failures.first_order(50)) > 10 * error  # not in its regime


def test_the_first_order_holds_in_its_regime() -> None:
    # Between failures 20,000 s; parts of 200 s. The first order leaves out what is quadratic in 212 / 20,000: 1e-4.
    failures = Failures(mtbf=2e6, interval=200.0, checkpoint=1.0, restart=10.0)
    mean, error = mean_of(failures, 100, 200_000, 40)
    left_out = ((failures.interval + failures.checkpoint + failures.restart) / failures.between(100)) ** 2
    first = failures.checkpoint / failures.between(100)  # a checkpoint is lost, too
    assert error < 5e-4
    assert abs(mean - failures.first_order(100)) < 4 * error + left_out + first
    assert failures.first_order(100) == pytest.approx(failures.expected(100), abs=left_out + first)
    assert failures.first_order(100) - 1 == pytest.approx(0.0105)


def test_the_best_interval() -> None:
    base = {"mtbf": 1e6, "checkpoint": 2.0, "restart": 7.0}
    best = Failures(**base).best_interval(100)
    assert best == pytest.approx(math.sqrt(2 * 2.0 * 1e4))
    at = [Failures(interval=x * best, **base).first_order(100) for x in (0.9, 1.0, 1.1)]
    assert at[1] < min(at[0], at[2])
    assert math.isinf(Failures(checkpoint=0.0).best_interval(1))  # without failures
    exact = [Failures(interval=x * best, **base).expected(100) for x in (0.8, 1.0, 1.25)]
    assert exact[1] < min(exact[0], exact[2])


def test_time_is_accounted_for() -> None:
    failures = Failures(mtbf=3000.0, interval=20.0, checkpoint=1.0)
    found = train(ONE, 1000, failures, 50, seed=3)
    assert found.useful == 1000
    assert found.checkpoints == 50
    assert found.failures > 5
    assert found.seconds == pytest.approx(found.useful + found.checkpoints * 1.0 + found.lost)
    assert train(ONE, 1000, failures, 50, seed=3) == found
    assert train(ONE, 1000, failures, 50, seed=4) != found


def test_progress_adds_up() -> None:
    seen: list[int] = []
    train(ONE, 105, Failures(interval=10.0), 1, tick=seen.append)
    assert seen == [10] * 10 + [5]


def test_refusals() -> None:
    with pytest.raises(ArgumentError, match="mtbf must be > 0, but is 0"):
        Failures(mtbf=0)
    with pytest.raises(ArgumentError, match="interval must be > 0"):
        Failures(interval=-1.0)
    with pytest.raises(ArgumentError, match="restart must be a number >= 0"):
        Failures(restart=-1.0)
    with pytest.raises(ArgumentError, match="mtbf must be long enough to reach the next checkpoint"):
        train(ONE, 1000, Failures(mtbf=100.0), 50)
