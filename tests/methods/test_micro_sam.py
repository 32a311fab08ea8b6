"""M1 to M7: what mSAM's formula implies.

Float64 throughout. What is equal in exact arithmetic agrees here to `SAME`: rounding times a few dozen steps.
"""

from __future__ import annotations

import numpy as np
import pytest
from reference.cases import BASES, PROBLEM, SAME, path_of, some
from reference.drive import Run, assert_differ, assert_same
from reference.model import concatenate, flat, take
from reference.vectors import add, norm, zeros

from lowland import SAM, MicroSAM, Plain


@pytest.mark.parametrize("base", BASES)
def test_m1_one_micro_batch_is_sam(base):
    path = path_of(MicroSAM(rho=0.2, m=1), some(), optimizer=BASES[base])
    assert_same(path, path_of(SAM(rho=0.2), some(), optimizer=BASES[base]), SAME)


@pytest.mark.parametrize("m", [2, 5])
def test_m2_identical_micro_batches_are_sam_on_one(m):
    batches = some()
    path = path_of(MicroSAM(rho=0.2, m=m), [concatenate(*[b] * m) for b in batches])
    assert_same(path, path_of(SAM(rho=0.2), batches), SAME)


@pytest.mark.parametrize("m", [3, 5, 12, 100])
def test_m3_without_radius_it_is_the_gradient_of_the_batch(m):
    assert_same(path_of(MicroSAM(rho=0.0, m=m), some()), path_of(Plain(), some()), SAME)


def test_m4_the_order_of_micro_batches_is_immaterial():
    batches, rng = some(), np.random.default_rng(0)
    permuted = []
    for batch in batches:
        order = rng.permutation(4)
        permuted.append(take(batch, np.concatenate([np.arange(3 * j, 3 * j + 3) for j in order])))
    path = path_of(MicroSAM(rho=0.3, m=4), batches)
    assert_same(path, path_of(MicroSAM(rho=0.3, m=4), permuted), SAME)
    mixed = [take(batch, rng.permutation(12)) for batch in batches]
    assert_differ(path, path_of(MicroSAM(rho=0.3, m=4), mixed))


@pytest.mark.parametrize("m", [12, 50])
def test_m6_micro_batches_of_one_average_sam_gradients_of_examples(m):
    run = Run(PROBLEM, PROBLEM.weights(1), MicroSAM(rho=0.3, m=m))
    for batch in some(4):
        w, total = run.w, zeros(run.w)
        for i in range(12):
            one = take(batch, np.array([i]))
            g = PROBLEM.gradient(w, one)
            total = add(total, PROBLEM.gradient(add(w, g, 0.3 / norm(g)), one), 1 / 12)
        run.step(batch, 0.1)
        assert_same([run.grad], [total], SAME)


def test_m7_where_the_gradient_is_constant_it_is_sgd():
    problem = flat()
    batches = some(10, problem)
    path = path_of(MicroSAM(rho=0.7, m=3), batches, problem=problem)
    assert_same(path, path_of(Plain(), batches, problem=problem), SAME)


def test_micro_sam_cuts_nine_examples_into_four():
    sizes = []

    def counting(model, batch):
        sizes.append(len(batch[0]))
        return PROBLEM.loss_fn(model, batch)

    run = Run(PROBLEM, PROBLEM.weights(1), MicroSAM(m=4), loss_fn=counting)
    run.step(PROBLEM.batch(0, 9), 0.1)
    assert sorted(sizes) == [2, 2, 2, 2, 2, 2, 3, 3]
    assert run.engine.cost.gradients == pytest.approx(2.0)
