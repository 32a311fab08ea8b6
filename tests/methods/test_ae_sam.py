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

from lowland import AESAM, SAM, Engine, Late, Plain
from lowland.core.errors import ArgumentError


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
@pytest.mark.parametrize("lag", [0, 1])
def test_the_threshold_goes_from_l2_to_l1_and_stays(l1, l2, total, lag):
    # a length that falls or rises alternately deviates by a known amount: one standard deviation at delta = 0.5
    problem = flat()
    small, large = problem.batch(0), problem.batch(0)
    large = 2 * large[0], large[1]
    run = Run(problem, problem.weights(1), AESAM(delta=0.5, l1=l1, l2=l2, total=total, lag=lag))
    lengths = [float(np.sum(problem.gradient(run.w, b)[0] ** 2)) for b in (small, large)]
    mean, var, expected = 0.0, 0.0, []
    for t in range(12):
        z = 0.0
        if t == lag:
            mean = lengths[0]
        elif t > lag:
            q = lengths[(t - lag) % 2]
            mean = 0.5 * mean + 0.5 * q
            var = 0.5 * var + 0.5 * (q - mean) ** 2
            z = (q - mean) / math.sqrt(var)
        x = min(t / total, 1.0)
        # 0 * inf is no threshold; an end that has no share has no say
        c = l2 if x == 0 else l1 if x == 1 else x * l1 + (1 - x) * l2
        expected.append(z >= c)
    assert choices(run, [small, large] * 6) == expected


@pytest.mark.parametrize("lag", [0, 1])
def test_a_long_gradient_brings_sam_at_its_own_step_and_with_a_lag_at_the_next(lag):
    problem = flat()
    run = Run(problem, problem.weights(1), AESAM(l1=1.0, l2=1.0, total=1, lag=lag))
    batches = [problem.batch(0)] * 20
    batches[8] = 3 * batches[8][0], batches[8][1]
    assert choices(run, batches) == [t == 8 + lag for t in range(20)]


@pytest.mark.parametrize("lag", [0, 1])
def test_a_short_one_brings_the_base(lag):
    problem = flat()
    run = Run(problem, problem.weights(1), AESAM(l1=-1.0, l2=-1.0, total=1, lag=lag))
    batches = [problem.batch(0)] * 20
    batches[8] = 0.3 * batches[8][0], batches[8][1]
    assert choices(run, batches) == [t != 8 + lag for t in range(20)]


def test_choices_by_hand():
    # The loss is linear in the weights, so q = c^2 * q_1 for c times the inputs: in units of q_1, q is 1, 4, 1, 9, 1.
    # With delta = 0.5: mean 1, 2.5, 1.75, 5.375, 3.1875; var 0, 1.125, 0.84375, 6.9921875, 5.888671875;
    # z = 0, 1.4142, -0.8165, 1.3709, -0.9014, against c = 1.4 - 0.1 * t: 1.4, 1.3, 1.2, 1.1, 1.0.
    problem = flat()
    run = Run(problem, problem.weights(1), AESAM(delta=0.5, l1=0.4, l2=1.4, total=10))
    x, y = problem.batch(0)
    assert choices(run, [(c * x, y) for c in (1, 2, 1, 3, 1)]) == [False, True, False, True, False]
    one = float(np.sum(problem.gradient(run.w, (x, y))[0] ** 2))
    assert run.engine.memory["mean"] == pytest.approx(3.1875 * one, rel=1e-12)
    assert run.engine.memory["var"] == pytest.approx(5.888671875 * one**2, rel=1e-12)


def test_of_two_lengths_the_longer_is_chosen_and_its_displacement_is_made_there():
    # q alternates between 1 and 100 times a unit; SAM is where it is 100, and with a lag where it is 1
    problem = flat()
    x, y = problem.batch(0)
    batches = [(x, y), (10 * x, y)] * 10
    for lag, expected in ((0, [False, True]), (1, [True, False])):
        run = Run(problem, problem.weights(1), AESAM(l1=0.0, l2=0.0, total=1, lag=lag))
        assert choices(run, batches)[2:] == expected * 9


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


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("stop", [1, 2, 7, 13])
def test_choices_go_on_after_a_resume(stop, lag):
    batches, lrs = some(30), [0.1] * 30

    def fresh():
        return Run(PROBLEM, PROBLEM.weights(1), AESAM(rho=0.2, total=30, lag=lag), MOMENTUM)

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


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e160])
def test_a_length_that_is_not_finite_measures_nothing(value, lag):
    problem = flat()
    run = Run(problem, problem.weights(1), AESAM(total=20, lag=lag))
    choices(run, [problem.batch(t) for t in range(6)], [0.0] * 6)
    spoiled = value * np.ones((6, 4)), np.zeros(6)
    before = dict(run.engine.memory)
    run.engine.backward(drive.to_torch(spoiled))
    if lag:  # that has measured the step before
        assert run.engine.memory["mean"] != before["mean"]
        before = dict(run.engine.memory)
        choices(run, [problem.batch(7)], [0.0])
    assert (run.engine.memory["mean"], run.engine.memory["var"]) == (before["mean"], before["var"])
    assert run.engine.memory["t"] == 7 + lag
    choices(run, [problem.batch(8)], [0.0])
    assert run.engine.memory["mean"] != before["mean"]
    assert all(map(math.isfinite, (run.engine.memory["mean"], run.engine.memory["var"])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_overflow_under_a_scaler_measures_nothing_and_low_precision_measures_alike(dtype):
    # a gradient of norm 500, whose square, 250,000, is beyond fp16, and in bf16 would be rounded to three digits
    model = torch.nn.Linear(4, 1, bias=False).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    method = AESAM(total=20, rho=0.0)
    engine = Engine(method, model, optimizer, lambda m, b: m(b).mean(), scaler=scaler)
    x = torch.tensor([[300.0, 400.0, 0.0, 0.0]], dtype=dtype)
    for factor in (1.0, 1.0, math.inf, 1.0):
        engine.backward(x * factor)
        optimizer.zero_grad()
    assert (engine.memory["mean"], engine.memory["var"]) == (250_000.0, 0.0)
    assert engine.memory["t"] == 4


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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"delta": 1.5}, r"delta must be in \[0, 1\], but is 1.5"),
        ({"l1": math.nan}, "l1 must be in"),
        ({"l2": "low"}, "l2 must be in"),
        ({"l1": -math.inf, "l2": math.inf}, "must not be opposite infinities, but are -inf and inf"),
        ({"lag": 2}, "lag must be 0 or 1, but is 2; 0 decides by the norm of this step, 1 by the one before"),
        ({"lag": True}, "lag must be 0 or 1, but is True"),
        ({"total": 0}, "total must be an integer >= 1, but is 0"),
        ({"total": 0.5}, "total must be an integer >= 1, but is 0.5"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ArgumentError, match=message):
        AESAM(**fields)
