"""L1 to L6: what LookSAM's formulas imply.

Float64 throughout. What is equal in exact arithmetic agrees here to `SAME`: rounding times a few dozen steps.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import drive
from reference.cases import BASES, PROBLEM, SAME, Spare, path_of, probes, some
from reference.drive import Run, assert_same
from reference.model import Quadratic
from reference.vectors import add, dot, norm

from lowland import SAM, LookSAM
from lowland.core import vec
from lowland.methods.looksam import _orthogonal


@pytest.mark.parametrize("base", BASES)
def test_l1_refreshed_always_it_is_sam(base):
    path = path_of(LookSAM(rho=0.2, k=1), some(), optimizer=BASES[base])
    assert_same(path, path_of(SAM(rho=0.2), some(), optimizer=BASES[base]), SAME)


def test_l2_without_reuse_it_is_sam_now_and_then():
    k, batches = 3, some()
    run = Run(PROBLEM, PROBLEM.weights(1), LookSAM(rho=0.2, k=k, alpha=0.0))
    x = PROBLEM.weights(1)
    for t, batch in enumerate(batches):
        run.step(batch, 0.1)
        g = PROBLEM.gradient(x, batch)
        d = PROBLEM.gradient(add(x, g, 0.2 / norm(g)), batch) if t % k == 0 else g
        x = add(x, d, -0.1)
        assert_same([run.w], [x], SAME)


def test_l3_the_reused_part_is_orthogonal_and_completes_the_gradient():
    run = Run(PROBLEM, PROBLEM.weights(1), LookSAM(rho=0.3, k=2))
    for t, batch in enumerate(some()):
        g = PROBLEM.gradient(run.w, batch)
        run.step(batch, 0.1)
        if t % 2 == 0:
            g_v, g_s = drive.arrays(run.engine.memory["g_v"]), run.grad
            assert norm(g_v) == pytest.approx(1, rel=1e-9)  # the direction is all that is kept, divided by norm + 1e-12
            assert abs(dot(g_v, g)) <= 1e-12 * norm(g)
            assert dot(g_v, g_s) > 1e-3 * norm(g_s)
            along = [dot(g, g_s) / dot(g, g) * x for x in g]
            assert_same([add(along, g_v, dot(g_v, g_s))], [g_s], SAME)


@pytest.mark.parametrize("alpha", [0.1, 0.7])
def test_l4_the_reused_part_has_a_set_length(alpha):
    run = Run(PROBLEM, PROBLEM.weights(1), LookSAM(rho=0.3, k=4, alpha=alpha))
    for t, batch in enumerate(some()):
        g = PROBLEM.gradient(run.w, batch)
        run.step(batch, 0.1)
        if t % 4:
            assert norm(add(run.grad, g, -1.0)) == pytest.approx(alpha * norm(g), rel=1e-9)


@pytest.mark.parametrize(("k", "steps"), [(1, 4), (3, 9), (3, 10), (5, 12)])
def test_l5_the_number_of_gradients(k, steps):
    calls = []

    def counting(model, batch):
        calls.append(None)
        return PROBLEM.loss_fn(model, batch)

    run = Run(PROBLEM, PROBLEM.weights(1), LookSAM(k=k), loss_fn=counting)
    asked = list(probes(run, some(steps)))
    assert sum(asked) == len(calls) == steps + -(-steps // k)
    assert asked == [2 if t % k == 0 else 1 for t in range(steps)]


@pytest.mark.parametrize("factor", [1e-4, 50.0])
def test_l6_the_length_of_the_orthogonal_part_is_immaterial(factor):
    draw = torch.Generator().manual_seed(0)
    g, v = ([torch.randn(4, 3, generator=draw, dtype=torch.float64) for _ in range(2)] for _ in range(2))
    v = vec.reject(v, g)
    kept, scaled = (_orthogonal(vec.add(vec.scale(g, 0.7), v, c), g) for c in (1.0, factor))
    for x, y in zip(kept, scaled, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-8)  # norm + 1e-12, at a norm of 1e-4


def test_looksam_does_not_reuse_rounding_noise():
    """On a round quadratic g_s is parallel to g: what is left is rounding and must not be magnified."""
    problem = Quadratic(1.7 * np.eye(4), np.array([0.3, -1.1, 0.7, 2.0]))
    run = Run(problem, problem.weights(1), LookSAM(rho=0.1, k=5, alpha=0.7))
    for batch in some(10, problem):
        g = problem.gradient(run.w, batch)
        run.step(batch, 0.05)
        assert norm(drive.arrays(run.engine.memory["g_v"])) == 0.0
        along = dot(run.grad, g) / (norm(run.grad) * norm(g))
        assert along == pytest.approx(1.0, abs=1e-14)


def test_looksam_keeps_all_of_the_sam_gradient_where_the_gradient_is_zero():
    problem = Quadratic(np.eye(4), np.zeros(4))
    run = Run(problem, [np.zeros(4)], LookSAM(rho=0.1, k=2))
    run.step(problem.batch(0, noise=0.0), 0.1)
    assert norm(drive.arrays(run.engine.memory["g_v"])) == 0.0
    assert norm(run.grad) == 0.0
    np.testing.assert_array_equal(run.w[0], np.zeros(4))


def test_looksam_remembers_what_a_batch_did_not_use():
    def sometimes(model, batch):
        losses = PROBLEM.loss_fn(model, batch)
        return losses + (model.spare - batch[0][:, :3]).pow(4).sum(1) if batch[0][0, 0] > 0 else losses

    used = next(b for b in some(20) if b[0][0, 0] > 0)
    unused = next(b for b in some(20) if b[0][0, 0] < 0)
    run = Run(Spare(), PROBLEM.weights(1), LookSAM(rho=0.1, k=1), loss_fn=sometimes)
    run.step(used, 0.01)
    spare, other, *_ = drive.arrays(run.engine.memory["g_v"])
    assert np.abs(spare).max() > 1e-3
    run.step(unused, 0.01)
    after = drive.arrays(run.engine.memory["g_v"])
    np.testing.assert_array_equal(after[0], spare)
    assert np.abs(after[1] - other).max() > 1e-6
