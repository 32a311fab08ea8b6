"""Trajectories of lowland's methods, against steps by hand and against closed forms."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

import lowland
from lowland.bench.convergence.follow import contestants, decade, floor, follow, slope, spread
from lowland.bench.convergence.naive import OptSAM, RandSAM
from lowland.bench.convergence.problems import PROBLEMS, Problem, _quadratic
from lowland.testing import check_method

RHO = 0.1
SAME = 1e-11  # rounding, and the 1e-12 that the geometry adds to norms


def parabola(start: float = 1.0) -> Problem:
    """``x^2`` for one number x."""
    zero = torch.zeros(1, dtype=torch.float64)
    return Problem(
        name="parabola",
        formula="x²",
        losses=partial(_quadratic, torch.tensor([2.0], dtype=torch.float64)),
        examples=zero[None],
        start=torch.tensor([start], dtype=torch.float64),
        minimizer=zero,
        smoothness=2.0,
    )


def test_the_lyapunov_function_of_two_steps_by_hand() -> None:
    """With lr 1/4 and ``g(x) = 2 x``, V is ``x^2 + (2 x - 2 y)^2 / 4``.

    The first step is plain: x is 1 and then 0.5, and y_1 is 1. So x~ = 0.6, x_2 = 0.5 - 1.2 / 4 = 0.2 and
    y_2 = 0.5 - 2 / 4 = 0. There the gradient is 0, and so is the perturbation: x_3 = 0.2 - 0.4 / 4 = 0.1, y_3 = 0.2.
    """
    path = follow(parabola(), lowland.SAMPa(rho=RHO, lam=0.0), 0.25, 2)
    assert path.distances == pytest.approx([0.5, 0.2, 0.1], abs=SAME)
    assert path.squares == pytest.approx([1.0, 0.16, 0.04], abs=SAME)
    assert path.values == pytest.approx([0.25 + 0.25, 0.04 + 0.04, 0.01 + 0.01], abs=SAME)
    assert path.mean_square == pytest.approx(0.58, abs=SAME)


def test_the_lyapunov_function_of_others_is_the_loss() -> None:
    path = follow(parabola(), lowland.SAM(rho=RHO), 0.25, 2)
    assert path.values == pytest.approx([d * d for d in path.distances], rel=1e-14)


def test_sam_follows_its_map_on_the_square() -> None:
    lr, problem = 0.2, PROBLEMS["square"]()
    path = follow(problem, lowland.SAM(rho=RHO), lr, 40)
    x, expected = problem.start.numpy(), []
    for _ in range(41):
        x = (1 - 2 * lr) * x - 2 * lr * RHO * x / np.linalg.norm(x)
        expected.append(float(np.linalg.norm(x)))
    assert path.distances == pytest.approx(expected, abs=SAME)


@pytest.mark.parametrize("lr", [0.05, 0.25, 0.4])
def test_sam_settles_where_the_closed_form_says(lr: float) -> None:
    path = follow(PROBLEMS["square"](), lowland.SAM(rho=RHO), lr, 400)
    assert path.settled == pytest.approx(lr * RHO / (1 - lr), abs=SAME)
    assert floor("sam", lr, RHO) == pytest.approx(path.settled, abs=SAME)


@pytest.mark.parametrize("method", [lowland.SAMPa(rho=RHO, lam=0.0), lowland.AsyncSAM(rho=RHO, share=1.0)])
def test_where_a_late_sign_settles_depends_on_the_start(method: lowland.Method) -> None:
    """So no closed form is given: there are several cycles, all in proportion to the step."""
    lr = 0.0625
    found = {round(follow(parabola(1 + 0.07 * n), method, lr, 200).settled / (lr * RHO), 2) for n in range(4)}
    assert len(found) > 1
    assert 1 < min(found) < max(found) < 3


@pytest.mark.parametrize("lr", [0.05, 0.25])
def test_optsam_goes_to_a_point_at_distance_rho(lr: float) -> None:
    """Whatever the step: ``x_t + rho u`` shrinks by ``1 - 2 lr``, until the gradient there is as small as 1e-6."""
    problem = PROBLEMS["square"]()
    path = follow(problem, OptSAM(rho=RHO), lr, 600)
    size = (1 - 2 * lr) * problem.start.norm().item()  # after the first step, which is plain
    expected = [abs((1 - 2 * lr) ** t * (size + RHO) - RHO) for t in range(int(3 / lr))]
    assert path.distances[: len(expected)] == pytest.approx(expected, abs=1e-9)
    # Then it goes to and fro between -rho u and rho u, where it stays most of the time.
    assert max(path.distances[-150:]) == pytest.approx(RHO, rel=1e-3)
    assert 0.85 * RHO < path.settled < RHO


@pytest.mark.slow
@pytest.mark.parametrize("lr", [0.05, 0.25])
def test_randsam_settles_at_the_root_of_the_step(lr: float) -> None:
    path = follow(PROBLEMS["square"](), RandSAM(rho=RHO), lr, 1200)
    # 300 steps, correlated over 1 / (2 lr) of them, in 10 dimensions: the error is about 4 percent at most.
    assert path.settled == pytest.approx(RHO * math.sqrt(lr / (1 - lr)), rel=0.12)


def test_closed_forms_are_for_small_steps() -> None:
    assert floor("sampa:lam=0", 0.1, RHO) is None
    assert floor("sam", 0.5, RHO) is None
    assert [floor(name, 0.2, RHO) for name in ("sam", "OptSAM", "RandSAM")] == pytest.approx([0.025, 0.1, 0.05])


@pytest.mark.parametrize("method", [OptSAM(rho=RHO), RandSAM(rho=RHO)])
def test_the_naive_methods_are_methods(method: lowland.Method) -> None:
    check_method(method)


def test_randsam_perturbs_by_rho_in_random_directions() -> None:
    problem = PROBLEMS["square"]()
    one, same = (follow(problem, RandSAM(rho=RHO), 0.25, 3, seed=0) for _ in range(2))
    assert one == same
    assert follow(problem, RandSAM(rho=RHO), 0.25, 3, seed=1) != one
    # x' = x / 2 - n / 2 with n of length rho, from x of length sqrt(2)
    assert abs(one.distances[0] - math.sqrt(2) / 2) <= RHO / 2
    assert follow(problem, RandSAM(rho=0.0), 0.25, 3) == follow(problem, lowland.Plain(), 0.25, 3)


def test_a_trajectory_stops_where_it_diverges() -> None:
    path = follow(PROBLEMS["square"](), lowland.Plain(), 3.0, 1000)
    assert path.diverged
    assert len(path.distances) == 9  # 5^9 = 2e6
    assert not follow(PROBLEMS["square"](), lowland.Plain(), 0.9, 100).diverged
    assert not follow(PROBLEMS["square"](), lowland.SAM(rho=1e4), 0.25, 100).diverged  # settles at 3333


def test_all_contestants_have_the_radius() -> None:
    methods = {name: contestant.method for name, contestant in contestants(0.3).items()}
    assert {m.rho for name, m in methods.items() if name != "plain"} == {0.3}
    assert methods["sampa:lam=0"] == lowland.SAMPa(rho=0.3, lam=0.0)


def test_slopes() -> None:
    assert slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert slope([1], [1]) is None
    assert slope([1, 2], [1, 0]) is None
    assert decade([4.0] * 300) == pytest.approx(0, abs=1e-12)
    assert decade([1.0, *[0.0] * 299]) == pytest.approx(-1)  # the sum is reached at once, so the mean is 1 / T
    assert spread(1, 1000, 4) == [1, 10, 100, 1000]
    assert spread(1, 3, 10) == [1, 2, 3]
