"""Unified SAM between SAM and USAM.

Float64 throughout. What is equal in exact arithmetic agrees here to `SAME`: rounding times a few dozen steps.
"""

from __future__ import annotations

from typing import Any

import pytest
from reference import drive
from reference.cases import BASES, LRS, MOMENTUM, PROBLEM, SAME, path_of, some
from reference.drive import Run, assert_differ, assert_same, sgd
from reference.follow import in_groups
from reference.model import Quadratic
from reference.vectors import add, norm, scale

from lowland import SAM, Late, UnifiedSAM
from lowland.core.errors import ArgumentError
from lowland.core.geometry import Layerwise
from lowland.methods import make, spell


@pytest.mark.parametrize("base", BASES)
def test_at_one_it_is_sam(base: str) -> None:
    path = path_of(UnifiedSAM(rho=0.2, lam=1), some(), optimizer=BASES[base])
    assert_same(path, path_of(SAM(rho=0.2), some(), optimizer=BASES[base]), 0)


@pytest.mark.parametrize("base", BASES)
def test_at_zero_the_perturbation_is_rho_times_the_gradient(base: str) -> None:
    run = Run(PROBLEM, PROBLEM.weights(1), UnifiedSAM(rho=0.3, lam=0), BASES[base])
    for batch, lr in zip(some(), LRS, strict=True):
        g = PROBLEM.gradient(run.w, batch)
        expected = PROBLEM.gradient(add(run.w, g, 0.3), batch)
        run.step(batch, lr)
        assert_same([run.grad], [expected], SAME)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_on_a_quadratic_by_hand(lam: float) -> None:
    """``d - g = rho (1 - lam + lam/|g|) A g``."""
    problem = Quadratic.random(3)
    run = Run(problem, problem.weights(1), UnifiedSAM(rho=0.2, lam=lam), sgd())
    batch = problem.batch(0)
    g = problem.gradient(run.w, batch)
    run.step(batch, 0.1)
    rise = 0.2 * (1 - lam + lam / norm(g)) * problem.A @ g[0]
    assert_same([run.grad], [[g[0] + rise]], SAME)


@pytest.mark.parametrize(("lam", "shares"), [("1/t", [1, 1 / 2, 1 / 3, 1 / 4]), ("1-1/t", [0, 1 / 2, 2 / 3, 3 / 4])])
def test_ramps_count_steps_from_one(lam: Any, shares: list[float]) -> None:
    run = Run(PROBLEM, PROBLEM.weights(1), UnifiedSAM(rho=0.3, lam=lam), MOMENTUM)
    for batch, lr, share in zip(some(4), LRS, shares, strict=False):
        g = PROBLEM.gradient(run.w, batch)
        e = scale(g, 0.3 * (1 - share + share / norm(g)))
        expected = PROBLEM.gradient(add(run.w, e), batch)
        run.step(batch, lr)
        assert_same([run.grad], [expected], SAME)


def test_a_resumed_run_knows_its_step() -> None:
    """The release would begin with a SAM step again."""
    batches = some(6)
    run = Run(PROBLEM, PROBLEM.weights(1), UnifiedSAM(rho=0.3, lam="1/t"), sgd())
    drive.trajectory(run, batches[:3], LRS[:3])
    resumed = Run(PROBLEM, run.w, UnifiedSAM(rho=0.3, lam="1/t"), sgd())
    fresh = Run(PROBLEM, run.w, UnifiedSAM(rho=0.3, lam="1/t"), sgd())
    resumed.engine.load_state_dict(run.engine.state_dict())
    expected = drive.trajectory(run, batches[3:], LRS[3:6])
    assert_same(drive.trajectory(resumed, batches[3:], LRS[3:6]), expected, 0)
    assert_differ(drive.trajectory(fresh, batches[3:], LRS[3:6]), expected)


def test_inside_late_it_counts_the_steps_of_the_training() -> None:
    late = Run(PROBLEM, PROBLEM.weights(1), Late(inner=UnifiedSAM(rho=0.3, lam="1-1/t"), start=4), sgd())
    drive.trajectory(late, some(4), LRS[:4])
    g, batch = PROBLEM.gradient(late.w, some(5)[4]), some(5)[4]
    e = scale(g, 0.3 * (1 / 5 + 4 / 5 / norm(g)))
    expected = PROBLEM.gradient(add(late.w, e), batch)
    late.step(batch, 0.1)
    assert_same([late.grad], [expected], SAME)


def test_the_norm_is_that_of_what_is_perturbed() -> None:
    run = Run(PROBLEM, PROBLEM.weights(1), UnifiedSAM(lam=0), sgd(), groups=in_groups([0.3, 0.0, 0.3, 0.0]))
    batch = some(1)[0]
    g = PROBLEM.gradient(run.w, batch)
    e = [0.3 * g[0], 0 * g[1], 0.3 * g[2], 0 * g[3]]
    expected = PROBLEM.gradient(add(run.w, e), batch)
    run.step(batch, 0.1)
    assert_same([run.grad], [expected], SAME)


def test_where_nothing_is_perturbed_it_is_the_base_optimizer() -> None:
    run = Run(PROBLEM, PROBLEM.weights(1), UnifiedSAM(), sgd(), groups=in_groups([0.0] * 4))
    batch = some(1)[0]
    expected = PROBLEM.gradient(run.w, batch)
    run.step(batch, 0.1)
    assert_same([run.grad], [expected], SAME)


def test_another_geometry_is_stretched() -> None:
    run = Run(PROBLEM, PROBLEM.weights(1), UnifiedSAM(rho=0.3, lam=0.25, geometry=Layerwise()), sgd())
    batch = some(1)[0]
    g = PROBLEM.gradient(run.w, batch)
    e = [0.3 * norm([w]) * x / norm([x]) for w, x in zip(run.w, g, strict=True)]
    expected = PROBLEM.gradient(add(run.w, e, 0.25 + 0.75 * norm(g)), batch)
    run.step(batch, 0.1)
    assert_same([run.grad], [expected], SAME)


@pytest.mark.parametrize("lam", [-0.1, 1.5, True, float("nan"), None, "t", "1 / t"])
def test_other_shares_are_refused(lam: Any) -> None:
    with pytest.raises(ArgumentError, match=r"lam must be .*\[0, 1\].*0 is USAM, 1 is SAM"):
        UnifiedSAM(lam=lam)


@pytest.mark.parametrize("lam", ["1/t", "1-1/t", 0.5])
def test_as_text(lam: Any) -> None:
    assert make(f"unified-sam:lam={lam}") == UnifiedSAM(lam=lam)
    assert make(spell(UnifiedSAM(lam=lam, rho=0.3))) == UnifiedSAM(lam=lam, rho=0.3)
