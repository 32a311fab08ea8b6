from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowland.core import schedule
from lowland.core.errors import ArgumentError, UsageError

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
    "no steps": (
        lambda: schedule.cosine(0.0, 1.0, 0),
        r"steps must be an integer >= 1, in steps, or a fraction of the training in \(0, 1\), but is 0; ",
    ),
    "half steps": (
        lambda: schedule.linear(0.0, 1.0, 2.5),
        "steps must be an integer >= 1, in steps, or .*, but is 2.5; ",
    ),
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


# Steps at which something happens


def held(when, steps=12):
    return [step for step in range(steps) if when.holds(step)]


def test_every_counts_from_its_offset():
    assert held(schedule.every(1)) == list(range(12))
    assert held(schedule.every(5)) == [0, 5, 10]
    assert held(schedule.every(5, offset=3)) == [3, 8]


@given(st.integers(1, 50), st.integers(0, 49), steps)
def test_every_holds_once_in_any_k_steps(k, offset, first):
    when = schedule.every(k, offset % k)
    (only,) = [step for step in range(first, first + k) if when.holds(step)]
    assert only % k == offset % k


def test_after_holds_from_its_start_on():
    assert held(schedule.after(0)) == list(range(12))
    assert held(schedule.after(9)) == [9, 10, 11]
    assert held(schedule.after(9, total=10)) == [9, 10, 11]  # an integer is a step, whatever the total
    assert held(schedule.after(99)) == []
    assert held(schedule.after(0.25, total=12)) == [3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert held(schedule.after(0.7, total=12)) == [9, 10, 11]  # 8.4 steps are over at step 9


@given(st.integers(1, 999), st.sampled_from([1, 3, 7, 100]))
def test_a_fraction_that_is_a_whole_step_starts_there(thousandths, hundreds):
    """Although 0.07 * 100 is 7.000000000000001 to the machine."""
    total = 1000 * hundreds
    when = schedule.after(thousandths / 1000, total=total)
    first = thousandths * hundreds
    assert not when.holds(first - 1)
    assert when.holds(first)


@given(st.floats(1e-6, 1.0, exclude_max=True), st.integers(1, 10**6))
def test_a_fraction_starts_within_the_training_and_stays(start, total):
    when = schedule.after(start, total=total)
    first = math.ceil(start * total - 1e-6)
    assert not when.holds(first - 1)
    assert when.holds(first + 1)
    assert when.holds(total)


def test_what_holds_when_is_a_value():
    assert schedule.every(5) == schedule.every(5, offset=0) != schedule.every(5, offset=1)
    assert schedule.after(5) == schedule.after(5, total=9) != schedule.after(0.5, total=10)
    assert len({schedule.every(5), schedule.every(5), schedule.after(5), schedule.after(5)}) == 2
    assert repr(schedule.every(5)) == "Every(k=5, offset=0)"
    assert isinstance(schedule.every(5), schedule.When)
    assert isinstance(schedule.after(5), schedule.When)


NEVER = {
    "k": (lambda: schedule.every(0), "k must be an integer >= 1, but is 0; k=1 is every step"),
    "half k": (lambda: schedule.every(2.5), "k must be an integer >= 1, but is 2.5"),
    "no k": (lambda: schedule.every(True), "k must be an integer >= 1, but is True"),
    "offset": (lambda: schedule.every(3, offset=-1), "offset must be an integer >= 0, but is -1"),
    "offset = k": (lambda: schedule.every(3, offset=3), "offset must be < k = 3, but is 3; 0 begins with the first"),
    "start": (
        lambda: schedule.after(-1),
        "start must be an integer >= 0, in steps, or .*, but is -1; 0.9 is the last tenth",
    ),
    "start 1.0": (lambda: schedule.after(1.0, total=9), "start must be an integer >= 0, in steps, or .*, but is 1.0"),
    "start 0.0": (lambda: schedule.after(0.0, total=9), "start must be an integer >= 0, in steps, or .*, but is 0.0"),
    "nan": (lambda: schedule.after(math.nan, total=9), "start must be an integer >= 0, in steps, or .*, but is nan"),
    "total": (lambda: schedule.after(0.5, total=0), "total must be an integer >= 1, but is 0"),
    "half total": (lambda: schedule.after(0.5, total=9.5), "total must be an integer >= 1, but is 9.5"),
}


@pytest.mark.parametrize(("make", "message"), NEVER.values(), ids=NEVER)
def test_bad_steps_are_refused(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_a_when_must_say_when():
    with pytest.raises(TypeError, match="holds"):
        schedule.When()


# Fractions of the training


def test_a_ramp_over_a_fraction_of_the_training():
    """By hand: at 0.1 of the training a ramp over 0.4 of it is a quarter done, and the step does not matter."""
    line, turn = schedule.linear(0.0, 0.2, steps=0.4), schedule.cosine(0.0, 0.2, steps=0.4)
    assert [line.at(7, 0.1, progress) for progress in (0.0, 0.1, 0.4, 1.0)] == pytest.approx([0.0, 0.05, 0.2, 0.2])
    assert turn.at(7, 0.1, 0.1) == pytest.approx(0.1 * (1 - math.sqrt(0.5)))
    assert turn.at(7, 0.1, 0.2) == pytest.approx(0.1)


def test_a_ramp_without_a_length_takes_the_whole_training():
    assert schedule.linear(0.1, 0.0).at(0, 0.1, 0.25) == pytest.approx(0.075)
    assert schedule.cosine(0.1, 0.0).at(0, 0.1, 0.5) == pytest.approx(0.05)
    assert schedule.cosine(0.1, 0.0).at(0, 0.1, 1.0) == 0.0


@pytest.mark.parametrize(("thousandths", "total"), [(70, 100), (300, 10), (1, 1000), (999, 1000), (500, 7)])
def test_a_fraction_starts_at_the_same_step_by_progress_as_by_total(thousandths, total):
    start = thousandths / 1000
    by_total, by_progress = schedule.after(start, total=total), schedule.after(start)
    steps = range(total + 1)
    assert [by_progress.holds(t, t / total) for t in steps] == [by_total.holds(t) for t in steps]
    assert schedule.after(0.1 + 0.2).holds(3, 3 / 10)  # 0.30000000000000004


def test_who_needs_progress_says_so_and_is_refused_without_it():
    needing = [schedule.linear(0, 1), schedule.linear(0, 1, 0.5), schedule.cosine(0, 1), schedule.after(0.5)]
    assert all(each.needs_progress for each in needing)
    content = [schedule.linear(0, 1, 5), schedule.constant(1), schedule.follow_lr(1, 0, lr_high=1), schedule.every(2)]
    assert not any(each.needs_progress for each in [*content, schedule.after(5), schedule.after(0.5, total=9)])
    with pytest.raises(UsageError, match=r"progress must be given for a fraction.*total_steps=10_000"):
        schedule.linear(0.0, 0.1).at(0, 0.1)
    with pytest.raises(UsageError, match="progress must be given for a fraction"):
        schedule.after(0.5).holds(3)
