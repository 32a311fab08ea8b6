"""The study: its rows against the trajectories, conditions, divergence, and equal records of equal settings."""

from __future__ import annotations

import json
import math

import pytest

import lowland
from lowland.bench.convergence import study as studies
from lowland.bench.convergence.follow import contestants, follow
from lowland.bench.convergence.problems import PROBLEMS
from lowland.bench.convergence.study import Setting, study, total
from lowland.core.errors import ArgumentError
from lowland.report.convergence.record import Study, TraceRecord


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("valley", "logistic"):
        monkeypatch.delitem(PROBLEMS, name)
    monkeypatch.setattr(studies, "HALVINGS", 2)
    monkeypatch.setattr(studies, "LENGTHS", 2)


def trace(problem: str, method: str, setting: Setting) -> TraceRecord:
    return studies._trace(PROBLEMS[problem](), method, contestants(setting.rho)[method], setting)


@pytest.mark.parametrize("problem", ["square", "valley", "logistic"])
@pytest.mark.parametrize("method", ["plain", "sam", "sampa:lam=0"])
def test_bounds_hold_where_the_conditions_do(problem: str, method: str) -> None:
    for rho, share in ((0.1, 0.5), (1.0, 0.95)):
        made = PROBLEMS[problem]()
        lr = share * min(1.0, 1 / made.smoothness)
        found = trace(problem, method, Setting(steps=100, rho=rho, lr=lr))
        assert found.reason == ""
        assert found.broken == 0
        assert found.mean_square is not None
        assert found.bound is not None
        assert found.mean_square <= found.bound * (1 + 1e-12)
        assert found.holds is True


def test_without_conditions_there_is_no_bound() -> None:
    late = Setting(steps=100, lr=0.6)  # 1 / L is 1 / 2, and 2 / L is 1
    for method in ("sam", "sampa:lam=0"):
        found = trace("square", method, late)
        assert found.reason == "conditions do not hold: the step 0.6 must be below 0.5"
        assert (found.bound, found.broken, found.holds) == (None, None, None)
    assert trace("square", "plain", late).holds is True
    assert trace("square", "OptSAM", late).reason == "no theorem"
    noisy = trace("noisy", "sam", Setting(steps=100, seeds=1))
    assert noisy.reason == "mini-batches: the theorem is about exact gradients"
    assert (noisy.bound, noisy.rises, noisy.gaps) == (None, None, [])


def test_a_row_is_its_trajectory() -> None:
    setting = Setting(steps=100)
    found, path = trace("square", "sam", setting), follow(PROBLEMS["square"](), lowland.SAM(rho=0.1), 0.25, 100)
    assert (found.runs, found.diverged) == (1, False)
    assert len(path.values) == 101
    assert found.distance == path.settled
    assert found.mean_square == pytest.approx(sum(path.squares[:100]) / 100)
    assert (found.steps[0], found.steps[-1]) == (1, 101)
    assert found.distances == [path.distances[step - 1] for step in found.steps]
    assert found.gaps == [path.values[step - 1] for step in found.steps]
    # x_1 = sqrt(2) / 2 - 0.1 / 2, f(x_1) = x_1^2; decrease 3 / 16; C = 4
    assert found.bound == pytest.approx((0.5**0.5 - 0.05) ** 2 / (100 * 3 / 16) + 0.0625 * 0.01 * 4 * 16 / 3)


def test_of_several_seeds_the_row_is_the_mean() -> None:
    setting = Setting(steps=100, seeds=2)
    found = trace("noisy", "plain", setting)
    paths = [follow(PROBLEMS["noisy"](), lowland.Plain(), 0.5, 100, seed) for seed in (0, 1)]
    assert found.runs == 2
    assert found.mean_square == pytest.approx(sum(p.mean_square for p in paths) / 2)
    assert found.distance == pytest.approx(math.sqrt(sum(p.settled**2 for p in paths) / 2))


@pytest.mark.slow
@pytest.mark.usefixtures("_small")
def test_equal_settings_have_equal_records() -> None:
    ticks: list[None] = []
    setting = Setting(steps=100, seeds=1)
    first = study(setting, lambda: ticks.append(None))
    assert len(ticks) == total(setting)
    assert study(setting).text() == first.text()
    assert study(Setting(steps=100, seeds=1, rho=0.2)).text() != first.text()
    assert first.floor_slopes["plain"] is None
    assert first.floor_slopes["OptSAM"] == pytest.approx(0, abs=0.1)
    sam = first.floor_slopes["sam"]
    assert sam is not None
    assert sam > 1
    assert set(first.rate_slopes) == {"square"}
    assert all(rate.bound is None or rate.mean_square <= rate.bound for rate in first.rates)
    assert {rate.method for rate in first.rates if rate.bound is not None} == {"sampa:lam=0"}


@pytest.mark.slow
@pytest.mark.usefixtures("_small")
def test_what_diverges_is_recorded_without_numbers() -> None:
    found = study(Setting(steps=100, seeds=1, lr=3.0))  # the quadratics diverge from a step of 1, and of 2
    assert all(trace.diverged for trace in found.traces)
    assert {(trace.distance, trace.bound, trace.holds) for trace in found.traces} == {(None, None, None)}
    assert found.rates == []
    assert {floor.lr for floor in found.floors} == set()  # 3 and 1.5 are both too large
    text = found.text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert isinstance(json.loads(text), dict)
    assert isinstance(found, Study)


def test_steps_with_which_nothing_settles_are_left_out() -> None:
    square = PROBLEMS["square"]()
    assert studies._floors(square, "sam", Setting(steps=100, lr=1e-3)) == []  # it would take 30,000 steps
    assert [floor.lr for floor in studies._floors(square, "sam", Setting(steps=100, lr=1.5))] == [0.375, 0.1875]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 99}, "steps must be an integer >= 100, but is 99"),
        ({"rho": 0.0}, "rho must be > 0, but is 0.0"),
        ({"rho": float("nan")}, "rho must be a number >= 0, but is nan"),
        ({"lr": -1.0}, "lr must be a number >= 0, but is -1.0"),
        ({"lr": 0}, "lr must be > 0, but is 0"),
        ({"seeds": 0}, "seeds must be an integer >= 1, but is 0"),
    ],
)
def test_wrong_settings(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Setting(**arguments)  # type: ignore[arg-type]


def test_the_default_step_is_half_of_the_limit() -> None:
    assert Setting().step_of(PROBLEMS["square"]()) == 0.25
    assert Setting().step_of(PROBLEMS["logistic"]()) == 0.5
    assert Setting(lr=0.3).step_of(PROBLEMS["square"]()) == 0.3
