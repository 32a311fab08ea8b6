"""H1, and what GSAM takes away from SAM's gradient.

Float64 throughout. What is equal in exact arithmetic agrees here to `SAME`: rounding times a few dozen steps.
"""

from __future__ import annotations

import numpy as np
import pytest
from reference.cases import BASES, LRS, MOMENTUM, PROBLEM, SAME, path_of, some
from reference.drive import Run, assert_differ, assert_same
from reference.model import Quadratic
from reference.vectors import TINY, add, dot, norm

from lowland import GSAM, SAM
from lowland.core import schedule
from lowland.core.errors import ArgumentError


@pytest.mark.parametrize("base", BASES)
def test_h1_without_alpha_it_is_sam(base):
    path = path_of(GSAM(rho=0.2, alpha=0.0), some(), optimizer=BASES[base])
    assert_same(path, path_of(SAM(rho=0.2), some(), optimizer=BASES[base]), SAME)
    assert_differ(path, path_of(GSAM(rho=0.2), some(), optimizer=BASES[base]))


@pytest.mark.parametrize("alpha", [0.4, 3.0])
def test_what_is_taken_away_is_orthogonal_to_the_sam_gradient(alpha):
    run = Run(PROBLEM, PROBLEM.weights(1), GSAM(rho=0.4, alpha=alpha), MOMENTUM)
    for batch, lr in zip(some(), LRS, strict=True):
        g = PROBLEM.gradient(run.w, batch)
        g_s = PROBLEM.gradient(add(run.w, g, 0.4 / (norm(g) + TINY)), batch)
        run.step(batch, lr)
        taken = add(g_s, run.grad, -1.0)
        assert abs(dot(taken, g_s)) <= 1e-13 * norm(g) * norm(g_s)
        # with the part along g_s it is the gradient: alpha (g - proj g)
        assert norm(taken) ** 2 == pytest.approx(alpha**2 * (norm(g) ** 2 - (dot(g, g_s) / norm(g_s)) ** 2), rel=1e-7)


def test_where_both_gradients_are_parallel_nothing_is_taken_away():
    problem = Quadratic(1.7 * np.eye(4), np.array([0.3, -1.1, 0.7, 2.0]))
    path = path_of(GSAM(rho=0.1, alpha=0.9), some(10, problem), problem=problem)
    assert_same(path, path_of(SAM(rho=0.1), some(10, problem), problem=problem), SAME)


def test_a_zero_gradient_is_no_nan():
    problem = Quadratic(np.eye(4), np.zeros(4))
    run = Run(problem, [np.zeros(4)], GSAM(rho=0.1))
    run.step(problem.batch(0, noise=0.0), 0.1)
    assert norm(run.grad) == norm(run.w) == 0.0


def test_its_radius_may_follow_the_learning_rate():
    lrs = LRS[:6]
    following = GSAM(rho=schedule.follow_lr(0.2, 0.0, lr_high=0.4))
    path = path_of(following, some(6), lrs)
    for t, lr in enumerate(lrs):  # up to step t the radius of step t differs, so that one step is checked at a time
        run = Run(PROBLEM, PROBLEM.weights(1) if t == 0 else path[t - 1], GSAM(rho=0.2 * lr / 0.4))
        other = Run(PROBLEM, PROBLEM.weights(1) if t == 0 else path[t - 1], following)
        run.step(some(6)[t], lr)
        other.step(some(6)[t], lr)
        assert_same([run.w], [other.w], SAME)


@pytest.mark.parametrize("alpha", [-0.1, float("inf"), float("nan"), "0.4", True])
def test_bad_alpha_is_refused(alpha):
    with pytest.raises(ArgumentError, match=rf"alpha must be a number >= 0, but is {alpha!r}; alpha=0 is SAM"):
        GSAM(alpha=alpha)
