"""Q1, and what else AE-SAM's policy implies.

Float64 throughout. What is equal in exact arithmetic agrees here to `SAME`: rounding times a few dozen steps.
"""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from reference import drive
from reference.cases import BASES, MOMENTUM, PROBLEM, SAME, path_of, probes, some
from reference.drive import Run, assert_same
from reference.model import flat

from lowland.errors import ArgumentError
from lowland.methods import AESAM, SAM, Late, Plain


def choices(run, batches, lrs=None):
    """At which steps it was SAM."""
    return [asked == 2 for asked in probes(run, batches, lrs)]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(("bound", "limit"), [(-math.inf, SAM(rho=0.2)), (math.inf, Plain())])
def test_q1_below_every_threshold_it_is_sam_and_above_the_base(base, bound, limit):
    method = AESAM(rho=0.2, l1=bound, l2=bound, total=5)
    assert_same(path_of(method, some(), optimizer=BASES[base]), path_of(limit, some(), optimizer=BASES[base]), SAME)


def test_gradients_of_one_length_wait_for_the_threshold_to_cross_zero():
    # nothing deviates, so it is SAM where c_t <= 0: with -1 and 1 from the middle of training on
    problem = flat()
    run = Run(problem, problem.weights(1), AESAM(total=10))
    assert choices(run, [problem.batch(0)] * 14) == [False] * 5 + [True] * 9


def test_zero_gradients_deviate_by_nothing():
    problem = flat()
    nothing = np.zeros((6, 4)), np.zeros(6)
    run = Run(problem, problem.weights(1), AESAM(total=4))
    assert choices(run, [nothing] * 8) == [False] * 2 + [True] * 6
    assert (run.engine.memory["mean"], run.engine.memory["var"]) == (0.0, 0.0)


@pytest.mark.parametrize(("l1", "l2"), [(2.0, -2.0), (-2.0, 2.0), (0.0, 0.0), (math.inf, 0.0), (1.0, -math.inf)])
@pytest.mark.parametrize("total", [1, 6, 40])
def test_the_threshold_goes_from_l2_to_l1_and_stays(l1, l2, total):
    # a length that falls or rises alternately deviates by a known amount: one standard deviation at delta = 0.5
    problem = flat()
    small, large = problem.batch(0), problem.batch(0)
    large = 2 * large[0], large[1]
    run = Run(problem, problem.weights(1), AESAM(delta=0.5, l1=l1, l2=l2, total=total))
    lengths = [float(np.sum(problem.gradient(run.w, b)[0] ** 2)) for b in (small, large)]
    mean, var, expected = 0.0, 0.0, []
    for t in range(12):
        z = 0.0
        if t == 1:
            mean = lengths[0]
        elif t > 1:
            q = lengths[(t - 1) % 2]
            mean = 0.5 * mean + 0.5 * q
            var = 0.5 * var + 0.5 * (q - mean) ** 2
            z = (q - mean) / math.sqrt(var)
        x = min(t / total, 1.0)
        # 0 * inf is no threshold; an end that has no share has no say
        c = l2 if x == 0 else l1 if x == 1 else x * l1 + (1 - x) * l2
        expected.append(z >= c)
    assert choices(run, [small, large] * 6) == expected


def test_a_long_gradient_brings_sam_at_the_step_after_it():
    problem = flat()
    run = Run(problem, problem.weights(1), AESAM(l1=1.0, l2=1.0, total=1))
    batches = [problem.batch(0)] * 20
    batches[8] = 3 * batches[8][0], batches[8][1]
    assert choices(run, batches) == [t == 9 for t in range(20)]


def test_a_short_one_brings_the_base():
    problem = flat()
    run = Run(problem, problem.weights(1), AESAM(l1=-1.0, l2=-1.0, total=1))
    batches = [problem.batch(0)] * 20
    batches[8] = 0.3 * batches[8][0], batches[8][1]
    assert choices(run, batches) == [t != 9 for t in range(20)]


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 1e6, 1e30])
def test_choices_do_not_depend_on_the_scale_of_the_loss(factor):
    def scaled(model, batch):
        return factor * PROBLEM.loss_fn(model, batch)

    fields = {"rho": 0.0, "total": 30}
    one = Run(PROBLEM, PROBLEM.weights(1), AESAM(**fields))
    other = Run(PROBLEM, PROBLEM.weights(1), AESAM(**fields), loss_fn=scaled)
    found = choices(one, some(30), [0.1] * 30)
    assert choices(other, some(30), [0.1 / factor] * 30) == found
    assert 5 < sum(found) < 25


@pytest.mark.parametrize("stop", [1, 2, 7, 13])
def test_choices_go_on_after_a_resume(stop):
    batches, lrs = some(30), [0.1] * 30

    def fresh():
        return Run(PROBLEM, PROBLEM.weights(1), AESAM(rho=0.2, total=30), MOMENTUM)

    whole = fresh()
    expected = choices(whole, batches, lrs)
    first = fresh()
    choices(first, batches[:stop], lrs[:stop])
    file = io.BytesIO()
    parts = {"model": first.model, "optimizer": first.optimizer, "engine": first.engine}
    torch.save({name: part.state_dict() for name, part in parts.items()}, file)
    file.seek(0)
    saved, second = torch.load(file, weights_only=True), fresh()
    second.model.load_state_dict(saved["model"])
    second.optimizer.load_state_dict(saved["optimizer"])
    second.engine.load_state_dict(saved["engine"])
    assert choices(second, batches[stop:], lrs[stop:]) == expected[stop:]
    assert_same([second.w], [whole.w], 0.0)
    assert second.engine.memory == whole.engine.memory


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e160])
def test_a_length_that_is_not_finite_measures_nothing(value):
    problem = flat()
    run = Run(problem, problem.weights(1), AESAM(total=20))
    choices(run, [problem.batch(t) for t in range(6)], [0.0] * 6)
    spoiled = value * np.ones((6, 4)), np.zeros(6)
    run.engine.backward(drive.to_torch(spoiled))
    before = run.engine.memory["mean"], run.engine.memory["var"]
    measured = float(np.sum(problem.gradient(run.w, problem.batch(5))[0] ** 2))
    assert before[0] != measured  # that was the step before, which has been measured
    choices(run, [problem.batch(7)], [0.0])
    assert (run.engine.memory["mean"], run.engine.memory["var"]) == before
    choices(run, [problem.batch(8)], [0.0])
    assert run.engine.memory["mean"] != before[0]


def test_a_deviation_whose_square_overflows_measures_nothing():
    # the squared length is finite, 1e200, but the square of its deviation is not
    problem = flat()
    run = Run(problem, problem.weights(1), AESAM(total=20))
    long = 1e100 * np.ones((6, 4)), np.zeros(6)
    batches = [problem.batch(0)] * 4 + [long] + [problem.batch(0)] * 4
    choices(run, batches, [0.0] * 9)
    assert all(map(math.isfinite, (run.engine.memory["mean"], run.engine.memory["var"])))


def test_under_late_its_training_begins_with_its_own_first_step():
    problem = flat()
    run = Run(problem, problem.weights(1), Late(inner=AESAM(total=4), start=3))
    assert choices(run, [problem.batch(0)] * 9) == [False] * 3 + [False] * 2 + [True] * 4


def test_total_must_be_given_before_training():
    with pytest.raises(ArgumentError, match=r"total must be given.*AESAM\(total=10_000\)"):
        Run(PROBLEM, PROBLEM.weights(1), AESAM())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"delta": 1.5}, r"delta must be in \[0, 1\], but is 1.5"),
        ({"l1": math.nan}, "l1 must be in"),
        ({"l2": "low"}, "l2 must be in"),
        ({"l1": -math.inf, "l2": math.inf}, "must not be opposite infinities, but are -inf and inf"),
        ({"total": 0}, "total must be an integer >= 1, but is 0"),
        ({"total": 0.5}, "total must be an integer >= 1, but is 0.5"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ArgumentError, match=message):
        AESAM(**fields)
