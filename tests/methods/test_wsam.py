"""W1, and how WSAM weighs sharpness.

Float64 throughout. What is equal in exact arithmetic agrees here to `SAME`: rounding times a few dozen steps.
"""

from __future__ import annotations

import pytest
from reference.cases import BASES, LRS, MOMENTUM, PROBLEM, SAME, path_of, some
from reference.drive import Run, assert_differ, assert_same, sgd
from reference.vectors import add, lerp, norm

from lowland import SAM, WSAM, Plain
from lowland.core.errors import ArgumentError


@pytest.mark.parametrize("base", BASES)
def test_w1_at_one_half_it_is_sam(base):
    path = path_of(WSAM(rho=0.2, gamma=0.5), some(), optimizer=BASES[base])
    # Adam magnifies the rounding of g + (g_s - g)
    tolerance = 1e-9 if base == "adamw" else SAME
    assert_same(path, path_of(SAM(rho=0.2), some(), optimizer=BASES[base]), tolerance)


@pytest.mark.parametrize("base", BASES)
def test_w1_at_zero_it_is_the_base_optimizer(base):
    path = path_of(WSAM(rho=0.2, gamma=0.0), some(), optimizer=BASES[base])
    assert_same(path, path_of(Plain(), some(), optimizer=BASES[base]), SAME)


@pytest.mark.parametrize("gamma", [0.3, 0.9])
def test_for_plain_sgd_the_decoupled_form_is_the_same(gamma):
    """It steps with g, then moves the weights by -lr a (g_s - g) past the optimizer."""
    a, rho = gamma / (1 - gamma), 0.05
    x, expected = PROBLEM.weights(1), []
    for batch, lr in zip(some(), LRS, strict=True):
        g = PROBLEM.gradient(x, batch)
        rise = add(PROBLEM.gradient(add(x, g, rho / norm(g)), batch), g, -1.0)
        x = add(add(x, g, -lr), rise, -lr * a)
        expected.append(x)
    assert_same(path_of(WSAM(rho=rho, gamma=gamma), some(), optimizer=sgd()), expected, SAME)


def test_the_weight_is_gamma_over_one_minus_gamma():
    run = Run(PROBLEM, PROBLEM.weights(1), WSAM(rho=0.3, gamma=0.75), MOMENTUM)
    for batch, lr in zip(some(), LRS, strict=True):
        g = PROBLEM.gradient(run.w, batch)
        g_s = PROBLEM.gradient(add(run.w, g, 0.3 / norm(g)), batch)
        run.step(batch, lr)
        assert_same([run.grad], [lerp(g, g_s, 3.0)], SAME)
        assert_differ([run.grad], [g_s])


@pytest.mark.parametrize(
    ("gamma", "message"),
    [
        (1, "gamma must be < 1, but is 1, which leaves no loss beside the sharpness; 0.9 is usual"),
        (1.0, "gamma must be < 1"),
        (1.5, r"gamma must be in \[0, 1\], but is 1.5; 0.5 is SAM"),
        (-0.1, r"gamma must be in \[0, 1\], but is -0.1"),
        (float("nan"), r"gamma must be in \[0, 1\], but is nan"),
    ],
)
def test_bad_gamma_is_refused(gamma, message):
    with pytest.raises(ArgumentError, match=message):
        WSAM(gamma=gamma)
