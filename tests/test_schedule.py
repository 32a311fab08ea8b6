from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowland import schedule
from lowland.errors import ArgumentError

radii = st.floats(0, 10)
steps = st.integers(0, 2000)


@given(radii, steps, radii)
def test_constant(value, step, lr):
    assert schedule.constant(value).at(step, lr) == value


@pytest.mark.parametrize("ramp", [schedule.linear, schedule.cosine])
@given(radii, radii, steps)
def test_ramps_run_from_start_to_end_and_stay_between(ramp, start, end, step):
    value = ramp(start, end, steps=1000).at(step, 0.1)
    # One rounding beyond the ends is allowed, below zero is not.
    assert max(min(start, end) - 1e-12, 0.0) <= value <= max(start, end) + 1e-12
    assert ramp(start, end, steps=1000).at(0, 0.1) == start
    for late in (1000, 5000):
        assert ramp(start, end, steps=1000).at(late, 0.1) == pytest.approx(end, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("ramp", [schedule.linear, schedule.cosine])
def test_ramps_reach_zero_exactly(ramp):
    assert ramp(0.3, 0.0, steps=7).at(7, 0.1) == 0.0


def test_linear_and_cosine_differ_a_quarter_in():
    assert schedule.linear(0.0, 1.0, 4).at(1, 0.1) == 0.25
    assert schedule.cosine(0.0, 1.0, 4).at(1, 0.1) == pytest.approx((1 - math.cos(math.pi / 4)) / 2, rel=1e-12)


def test_follow_lr_is_proportional_and_clipped():
    follow = schedule.follow_lr(0.2, 0.1, lr_high=1.0, lr_low=0.5)
    expected = [(2.0, 0.2), (1.0, 0.2), (0.75, 0.15), (0.5, 0.1), (0.1, 0.1)]
    assert [follow.at(0, lr) for lr, _ in expected] == pytest.approx([rho for _, rho in expected])


def test_schedules_are_values():
    assert schedule.cosine(0.1, 0.2, 5) == schedule.cosine(0.1, 0.2, 5)
    assert schedule.cosine(0.1, 0.2, 5) != schedule.linear(0.1, 0.2, 5)
    assert len({schedule.linear(0.1, 0.2, 5), schedule.linear(0.1, 0.2, 5)}) == 1


REFUSED = {
    "constant": (lambda: schedule.constant(-0.1), "value must be .*>= 0, but is -0.1; "),
    "start": (lambda: schedule.linear(-1.0, 0.0, 5), "start must be .*>= 0, but is -1.0; "),
    "end": (lambda: schedule.cosine(1.0, math.nan, 5), "end must be .*>= 0, but is nan; "),
    "no steps": (lambda: schedule.cosine(0.0, 1.0, 0), "steps must be an integer >= 1, but is 0; "),
    "half steps": (lambda: schedule.linear(0.0, 1.0, 2.5), "steps must be an integer >= 1, but is 2.5; "),
    "high": (lambda: schedule.follow_lr(-1, 0, lr_high=1), "high must be .*>= 0, but is -1; "),
    "low": (lambda: schedule.follow_lr(1, -1, lr_high=1), "low must be .*>= 0, but is -1; "),
    "lr_high": (lambda: schedule.follow_lr(1, 0, lr_high=0.0), "lr_high must be .*but is 0.0; "),
    "lr_high = lr_low": (lambda: schedule.follow_lr(1, 0, lr_high=0.1, lr_low=0.1), "lr_high must be .*but is 0.1; "),
    "lr_high < lr_low": (lambda: schedule.follow_lr(1, 0, lr_high=0.1, lr_low=0.2), "lr_high must be .*but is 0.1; "),
    "lr_low": (lambda: schedule.follow_lr(1, 0, lr_high=0.1, lr_low=-1.0), "lr_low must be .*but is -1.0; "),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_a_radius_that_follows_a_tensor_is_refused():
    with pytest.raises(ArgumentError, match="lr must be a number where rho follows it"):
        schedule.follow_lr(0.1, 0.0, lr_high=0.1).at(step=0, lr=torch.tensor(0.1))
    assert schedule.linear(0.0, 0.1, steps=10).at(step=5, lr=torch.tensor(0.1)) == 0.05
