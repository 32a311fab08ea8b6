"""Which examples AUSAM draws: counted over many steps and compared with the chances of its formula.

What a plan asks first shows its draw. Draws are seeded; the tolerances are about four standard deviations of a count.
"""

from __future__ import annotations

from contextlib import closing
from itertools import permutations

import numpy as np
import pytest
import torch
from reference.drive import Run, to_torch
from reference.sampling import Indexed

from lowland import AUSAM

PROBLEM = Indexed(examples=20)


def frequencies(run, batch, scores, counts, steps=1500):
    """How often each example of the batch is drawn when the tables hold these scores; no pass is run."""
    index, drawn = torch.from_numpy(batch[2]), torch.zeros(len(batch[2]))
    scores, counts = torch.tensor([scores, counts], dtype=torch.float64)
    memory, t = run.engine.memory, run.engine.memory["t"]
    memory["sums"][index], memory["counts"][index] = scores * counts, counts
    for _ in range(steps):
        memory["t"] = t
        with closing(run.engine.method.plan(run.engine, to_torch(batch))) as plan:
            drawn += torch.isin(index, next(plan).batch[2])
    return drawn.numpy() / steps


def run_of(**fields):
    return Run(PROBLEM, PROBLEM.weights(1), AUSAM(examples=20, **fields))


def inclusion(chances, count):
    """The probability of each example to be among `count` drawn one after another without replacement."""
    total = np.zeros(len(chances))
    for order in permutations(range(len(chances)), count):
        left, p = sum(chances), 1.0
        for i in order:
            p, left = p * chances[i] / left, left - chances[i]
        total[list(order)] += p
    return total


SEEN = [1.0] * 4


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_draws_are_without_replacement_with_chances_by_score(alpha):
    batch = PROBLEM.batch(3, 4)
    found = frequencies(run_of(alpha=alpha), batch, [2.0, 2.4, 6.0, 3.0], SEEN)
    chances = [0.1, 0.1 + 0.4 * 0.1, 0.5, 0.1 + 0.4 * 0.25]
    np.testing.assert_allclose(found, inclusion(chances, round(4 * alpha)), atol=0.05)


def test_all_scores_equal_are_equal_chances():
    found = frequencies(run_of(), PROBLEM.batch(3, 4), [3.0] * 4, SEEN)
    np.testing.assert_allclose(found, 0.5, atol=0.05)


def test_without_any_score_chances_are_equal():
    found = frequencies(run_of(), PROBLEM.batch(3, 4), [0.0] * 4, [0.0] * 4)
    np.testing.assert_allclose(found, 0.5, atol=0.05)


def test_an_example_without_score_counts_as_the_batch_s_largest():
    found = frequencies(run_of(alpha=0.25), PROBLEM.batch(3, 4), [2.0, 0.0, 6.0, 2.0], [1.0, 0.0, 3.0, 2.0])
    np.testing.assert_allclose(found, np.array([0.1, 0.5, 0.5, 0.1]) / 1.2, atol=0.05)


def test_scores_are_means_not_sums():
    found = frequencies(run_of(alpha=0.25), PROBLEM.batch(3, 4), [1.0, 1.0, 1.0, 2.0], [50.0, 1.0, 9.0, 1.0])
    np.testing.assert_allclose(found, np.array([0.1, 0.1, 0.1, 0.5]) / 0.8, atol=0.05)


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (5, 0.5), (10, 1.0), (99, 1.0)])
def test_chances_grow_apart_during_the_ramp(step, share):
    run = run_of(alpha=0.25, ramp=10)
    run.engine.memory["t"] = step
    found = frequencies(run, PROBLEM.batch(3, 4), [1.0, 2.0, 1.0, 1.0], SEEN)
    largest = 0.1 + 0.4 * share
    np.testing.assert_allclose(found[1], largest / (largest + 0.3), atol=0.05)


def test_the_ramp_counts_steps_of_the_warm_up_too():
    run = run_of(alpha=0.25, ramp=10, warmup=4)
    run.engine.memory["t"] = 5
    found = frequencies(run, PROBLEM.batch(3, 4), [1.0, 2.0, 1.0, 1.0], SEEN)
    np.testing.assert_allclose(found[1], 0.3 / 0.6, atol=0.05)


def test_nothing_is_drawn_where_nothing_is_left_out():
    run = run_of(alpha=0.5, warmup=3)
    before = run.engine.rng.getstate()
    for t in range(3):
        run.step(PROBLEM.batch(t), 0.1)  # warm-up
    for t in range(3):
        run.step(PROBLEM.batch(t, 1), 0.1)  # batches of one
    assert run.engine.rng.getstate() == before
    run.step(PROBLEM.batch(3), 0.1)
    assert run.engine.rng.getstate() != before


def test_draws_follow_the_seed():
    def counts(seed):
        run = Run(PROBLEM, PROBLEM.weights(1), AUSAM(examples=20), seed=seed)
        for t in range(6):
            run.step(PROBLEM.batch(t), 0.1)
        return run.engine.memory["counts"].tolist()

    assert counts(3) == counts(3)
    assert counts(3) != counts(4)


@pytest.mark.parametrize("extreme", [1e-300, 1e300])
def test_scores_of_any_size_give_chances(extreme):
    found = frequencies(run_of(alpha=0.25), PROBLEM.batch(3, 4), [extreme, 3 * extreme, extreme, 2 * extreme], SEEN)
    np.testing.assert_allclose(found, np.array([0.1, 0.5, 0.1, 0.3]), atol=0.05)
