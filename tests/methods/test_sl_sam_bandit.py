"""How SL-SAM's probabilities move: they keep their sum and their bounds, and follow the gradients' lengths.

What is equal in exact arithmetic agrees here to 1e-12: probabilities are sums of a few numbers below 1.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import drive, sl_sam
from reference.cases import MOMENTUM, PROBLEM, some
from reference.drive import Run
from reference.follow import assert_follows
from reference.model import MLP, flat

from lowland import SLSAM
from lowland.core.errors import ArgumentError
from lowland.methods.sl_sam import fill

CLOSE = 1e-12


@dataclass
class Scaled(MLP):
    """The same problem with a loss `factor` times as large."""

    factor: float = 1.0

    def losses(self, w, batch):
        return self.factor * super().losses(w, batch)

    def gradient(self, w, batch):
        return [self.factor * g for g in super().gradient(w, batch)]

    def loss_fn(self, model, batch):
        return self.factor * super().loss_fn(model, batch)


def run_of(problem=PROBLEM, **options):
    fields = {f.name: options.pop(f.name) for f in dataclasses.fields(SLSAM) if f.name in options}
    return Run(problem, problem.weights(1), SLSAM(**fields), MOMENTUM, **options)


def chances(run):
    return np.array(run.engine.memory["p"])


@pytest.mark.parametrize("s", [0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("alpha_p", [0.0, 1e-3, 0.3, 10.0])
def test_probabilities_keep_their_sum_and_their_bounds(s, alpha_p):
    run = run_of(s=s, alpha_p=alpha_p)
    for batch in some(30):
        run.step(batch, 0.1)
        assert (chances(run) <= 1).all()
        assert (chances(run) >= 1e-8).all()
        # what is raised to 1e-8 comes on top
        assert chances(run).sum() == pytest.approx(4 * s, abs=4e-8 + CLOSE)


@pytest.mark.parametrize("factor", [0.1, 10.0, 30.0, 100.0])
def test_the_twin_is_followed_on_losses_of_any_size(factor):
    fields = {"rho": 0.1, "s": 0.8}
    run, twin = assert_follows(
        SLSAM(**fields), sl_sam.SLSAM, {**fields, "seed": 2}, "adamw", 40, Scaled(factor=factor), seed=2
    )
    # room for six digits lost to (L/p_min)^2, which cancels
    np.testing.assert_allclose(chances(run), twin.p, rtol=1e-6)


def test_without_alpha_they_stay():
    run = run_of(s=0.3, alpha_p=0.0)
    for batch in some(20):
        run.step(batch, 0.1)
        np.testing.assert_allclose(chances(run), 0.3, rtol=CLOSE)


def test_zero_gradients_move_nothing():
    problem = flat()
    run = run_of(problem, s=0.5, alpha_p=1.0)
    for _ in range(6):
        run.step((np.zeros((6, 4)), np.zeros(6)), 0.1)
    assert chances(run) == pytest.approx([0.5], rel=CLOSE)


def test_they_move_one_step_after_the_norms_were_taken():
    run, found = run_of(s=0.5, alpha_p=0.3), []
    for batch in some(4):
        run.step(batch, 0.1)
        found.append(chances(run))
    np.testing.assert_array_equal(found[0], 0.5)  # nothing known yet
    assert (found[1] != 0.5).any()


def test_of_the_drawn_the_longest_gradient_for_its_chance_gains_most():
    run, gained, norms = run_of(s=0.5, alpha_p=0.3), 0, np.empty(0)
    for batch in some(20):
        w, before, known = run.w, chances(run), run.engine.memory["drawn"]
        run.step(batch, 0.1)
        drawn = np.flatnonzero(known["active"]) if known else []
        if len(drawn) > 1 and (chances(run) < 1).all():
            ratios = norms[drawn] / np.array(known["chances"])[drawn]
            moved = chances(run)[drawn] / before[drawn]
            assert moved[np.argmax(ratios)] == max(moved) > min(moved)
            gained += 1
        norms = np.array([np.linalg.norm(g) for g in PROBLEM.gradient(w, batch)])
    assert gained > 4


def test_p_min_cancels():
    def path(p_min):
        run, found = run_of(s=0.5, alpha_p=0.1, p_min=p_min), []
        for batch in some(15):
            run.step(batch, 0.1)
            found.append(chances(run))
        return np.array(found)

    # up to the digits that (L/p_min)^2 takes from the costs
    np.testing.assert_allclose(path(1.0), path(1e-3), rtol=1e-7)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_norms_that_are_not_finite_move_nothing(value):
    run = run_of(s=0.5, alpha_p=0.3)
    for batch in some(5):
        run.step(batch, 0.1)
    spoiled = PROBLEM.batch(5)
    spoiled[0][4] = value
    run.engine.backward(drive.to_torch(spoiled))  # and the caller skips the step
    run.optimizer.zero_grad()
    before = chances(run)
    run.step(PROBLEM.batch(6), 0.1)
    np.testing.assert_array_equal(chances(run), before)
    for batch in some(12)[7:]:  # a draw of one tensor moves nothing either
        run.step(batch, 0.1)
    assert (chances(run) != before).any()


@pytest.mark.parametrize("factor", [1e-300, 1e-160, 1e80, 1e150, 1e152, 1e160])
def test_norms_of_any_size_are_no_error(factor):
    run = run_of(Scaled(factor=factor), s=0.5)
    for batch in some(8):
        run.step(batch, 0.0)
        assert np.isfinite(chances(run)).all()
        assert chances(run).sum() == pytest.approx(2, abs=1e-7)


# Water-filling


@pytest.mark.parametrize(
    ("values", "total", "expected"),
    [
        ([0.2, 0.2], 1.0, [0.5, 0.5]),
        ([0.3, 0.1], 1.0, [0.75, 0.25]),
        ([1.0, 1.0, 8.0], 2.0, [0.5, 0.5, 1.0]),
        ([8.0, 1.0, 4.0, 1.0], 3.0, [1.0, 0.5, 1.0, 0.5]),
        ([0.9, 0.05, 0.05], 2.0, [1.0, 0.5, 0.5]),
        ([0.5, 0.25, 0.25], 2.0, [1.0, 0.5, 0.5]),  # exactly at 1
        ([1.0, 1.0], 2.0, [1.0, 1.0]),
        ([0.1, 0.7], 2.0, [1.0, 1.0]),
        ([3.0], 0.5, [0.5]),
        ([1.0, 1e-17, 2e-17], 2.0, [1.0, 1 / 3, 2 / 3]),  # what is small is not lost beside what is large
        ([1.0, 1.0, 1e-30], 3.0, [1.0, 1.0, 1.0]),
        ([0.7, 0.2, 1e-40, 3e-40], 2.4, [1.0, 1.0, 0.1, 0.3]),
    ],
)
def test_fill_by_hand(values, total, expected):
    assert fill(values, total) == pytest.approx(expected, rel=CLOSE)


def test_zeros_take_nothing():
    assert fill([0.5, 0.0], 1.0) == [1.0, 0.0]
    assert fill([0.5, 0.0, 0.0], 2.0) == [1.0, 0.0, 0.0]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    values=st.lists(st.one_of(st.floats(1e-3, 1.0), st.floats(1e-30, 1e-3)), min_size=1, max_size=9),
    share=st.floats(0.01, 1.0),
)
def test_filled_values_sum_to_the_total_keep_their_order_and_stay_below_one(values, share):
    total = share * len(values)
    filled = fill(values, total)
    assert sum(filled) == pytest.approx(total, rel=CLOSE)
    assert max(filled) <= 1 + CLOSE
    pairs = sorted(zip(values, filled, strict=True))
    assert all(b - a >= -CLOSE for (_, a), (_, b) in pairwise(pairs))
    factors = [f / v for v, f in zip(values, filled, strict=True) if f < 1 - 1e-9]
    assert not factors or max(factors) == pytest.approx(min(factors), rel=1e-9)
    assert filled == pytest.approx(sl_sam.water_fill(values, total), rel=CLOSE)


def test_a_resumed_run_has_its_probabilities_and_draws():
    def fresh():
        return run_of(s=0.5, alpha_p=0.3, seed=4)

    whole = fresh()
    for batch in some(7):
        whole.step(batch, 0.1)
    resumed = fresh()
    for name in ("model", "optimizer", "engine"):  # copies: an optimizer keeps the tensors it loads
        getattr(resumed, name).load_state_dict(copy.deepcopy(getattr(whole, name).state_dict()))
    for batch in some(20)[7:]:
        for run in (whole, resumed):
            run.step(batch, 0.1)
        assert resumed.engine.memory == whole.engine.memory
        assert all(torch.equal(p, q) for p, q in zip(whole.engine.params, resumed.engine.params, strict=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"s": 0}, "s must be > 0, but is 0; 0 draws no tensor"),
        ({"s": 1.5}, r"s must be in \[0, 1\], but is 1.5"),
        ({"alpha_p": -1}, "alpha_p must be a number >= 0, but is -1"),
        ({"p_min": 0.0}, "p_min must be > 0, but is 0"),
        ({"p_min": 2}, r"p_min must be in \[0, 1\], but is 2"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ArgumentError, match=message):
        SLSAM(**fields)
