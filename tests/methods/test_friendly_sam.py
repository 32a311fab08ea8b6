"""F1 to F3, and what Friendly SAM's mean remembers.

Float64 throughout. What is equal in exact arithmetic agrees here to `SAME`: rounding times a few dozen steps.
"""

from __future__ import annotations

import numpy as np
import pytest
from reference import drive
from reference.cases import BASES, LRS, MOMENTUM, PROBLEM, SAME, Spare, path_of, some
from reference.drive import Run, assert_differ, assert_same, sgd
from reference.model import flat
from reference.vectors import add, lerp, norm

from lowland import SAM, FriendlySAM
from lowland.core.errors import ArgumentError


def displacements(run: Run, batch, lr: float = 0.1):
    """How far from the weights every pass of one step stands."""
    at, before, loss_fn = [], run.w, run.engine.loss_fn

    def watching(model, batch):
        at.append(add(drive.arrays(model.parameters()), before, -1.0))
        return loss_fn(model, batch)

    run.engine.loss_fn = run.engine.work.loss_fn = watching
    run.step(batch, lr)
    run.engine.loss_fn = run.engine.work.loss_fn = loss_fn
    return at


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("lmb", [0.0, 0.9])
def test_f1_without_sigma_it_is_sam(base, lmb):
    path = path_of(FriendlySAM(rho=0.2, sigma=0.0, lmb=lmb), some(), optimizer=BASES[base])
    assert_same(path, path_of(SAM(rho=0.2), some(), optimizer=BASES[base]), SAME)


@pytest.mark.parametrize("lmb", [0.6, 0.9])
def test_f2_at_sigma_one_the_paper_s_new_mean_gives_the_direction_of_the_old_one(lmb):
    """The paper subtracts the mean that already contains g; started alike, the paths are the same."""
    rho, batches = 0.3, some()
    x = PROBLEM.weights(1)
    g = PROBLEM.gradient(x, batches[0])
    mean, d, expected = g, g, []  # the first step has no mean to subtract
    for t, (batch, lr) in enumerate(zip(batches, LRS, strict=True)):
        if t:
            g = PROBLEM.gradient(x, batch)
            mean = lerp(g, mean, lmb)
            d = add(g, mean, -1.0)
        x = add(x, PROBLEM.gradient(add(x, d, rho / norm(d)), batch), -lr)
        expected.append(x)
    path = path_of(FriendlySAM(rho=rho, lmb=lmb), batches, optimizer=sgd())
    # d is lmb times as long, and the 1e-12 in the norm counts that much more
    assert_same(path, expected, 1e-10)


def test_f2_holds_for_sigma_one_alone():
    old = path_of(FriendlySAM(rho=0.3, sigma=0.5), some(), optimizer=sgd())
    assert_differ(old, path_of(FriendlySAM(rho=0.3, sigma=1.0), some(), optimizer=sgd()))


@pytest.mark.parametrize("base", BASES)
def test_f3_the_first_step_is_a_sam_step(base):
    path = path_of(FriendlySAM(rho=0.2), some(3), optimizer=BASES[base])
    expected = path_of(SAM(rho=0.2), some(3), optimizer=BASES[base])
    assert_same(path[:1], expected[:1], SAME)
    assert_differ(path[1:2], expected[1:2])


@pytest.mark.parametrize("base", ["momentum", "adamw"])
def test_the_mean_is_its_own_and_of_plain_gradients(base):
    run = Run(PROBLEM, PROBLEM.weights(1), FriendlySAM(rho=0.3, lmb=0.7), BASES[base])
    mean = None
    for batch, lr in zip(some(), LRS, strict=True):
        g = PROBLEM.gradient(run.w, batch)
        run.step(batch, lr)
        mean = g if mean is None else lerp(g, mean, 0.7)  # of gradients at the weights, whatever the base keeps
        assert_same([drive.arrays(run.engine.memory["mean"])], [mean], SAME)
    kept = {"momentum": "momentum_buffer", "adamw": "exp_avg"}[base]
    buffers = [run.optimizer.state[p][kept] for p in run.model.parameters()]
    assert_differ([drive.arrays(buffers)], [mean])


def test_a_gradient_that_is_the_mean_is_no_direction():
    """With the same loss everywhere g - m is zero, exactly: no perturbation and no NaN."""
    problem = flat()
    run = Run(problem, problem.weights(1), FriendlySAM(rho=0.3))
    batch = problem.batch(0)
    run.step(batch, 0.1)
    for _ in range(3):
        here, there = displacements(run, batch)
        assert norm(here) == norm(there) == 0.0
        assert np.isfinite(run.w[0]).all()


def test_the_mean_of_what_a_batch_did_not_use_stays():
    def sometimes(model, batch):
        losses = PROBLEM.loss_fn(model, batch)
        return losses + (model.spare - batch[0][:, :3]).pow(4).sum(1) if batch[0][0, 0] > 0 else losses

    used = next(b for b in some(20) if b[0][0, 0] > 0)
    unused = next(b for b in some(20) if b[0][0, 0] < 0)
    run = Run(Spare(), PROBLEM.weights(1), FriendlySAM(rho=0.1), loss_fn=sometimes)
    run.step(used, 0.01)
    spare, other, *_ = drive.arrays(run.engine.memory["mean"])
    assert np.abs(spare).max() > 1e-3
    run.step(unused, 0.01)
    after = drive.arrays(run.engine.memory["mean"])
    np.testing.assert_array_equal(after[0], spare)
    assert np.abs(after[1] - other).max() > 1e-6


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("step", [0, 2])
def test_a_gradient_that_is_not_finite_leaves_the_mean(value, step):
    run = Run(PROBLEM, PROBLEM.weights(1), FriendlySAM(rho=0.2), MOMENTUM)
    for batch in some(step):
        run.step(batch, 0.1)
    before = drive.arrays(run.engine.memory["mean"])
    inputs, targets = PROBLEM.batch(9)
    inputs[0, 0] = value
    run.optimizer.zero_grad()
    run.engine.backward(drive.to_torch((inputs, targets)))  # and the caller skips the step
    for x, y in zip(drive.arrays(run.engine.memory["mean"]), before, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sigma": -0.1}, "sigma must be a number >= 0, but is -0.1; sigma=0 is SAM"),
        ({"lmb": 1.5}, r"lmb must be in \[0, 1\], but is 1.5; "),
        ({"lmb": float("nan")}, r"lmb must be in \[0, 1\], but is nan; "),
        ({"rho": -1.0}, "rho must be a number >= 0"),
    ],
)
def test_bad_arguments_are_refused(fields, message):
    with pytest.raises(ArgumentError, match=message):
        FriendlySAM(**fields)


def test_one_example_at_a_time():
    path = path_of(FriendlySAM(rho=0.2), [PROBLEM.batch(t, 1) for t in range(6)])
    assert all(np.isfinite(x).all() for w in path for x in w)
