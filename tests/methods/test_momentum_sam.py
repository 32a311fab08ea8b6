"""N1 to N3, and what counts as momentum.

Float64 throughout. What is equal in exact arithmetic agrees here to `SAME`: rounding times a few dozen steps.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import drive
from reference.attacks import points_of
from reference.cases import BASES, LRS, MOMENTUM, PROBLEM, SAME, Spare, path_of, some
from reference.drive import Run, assert_differ, assert_same, sgd, trajectory
from reference.vectors import TINY, add, norm, scale, zeros

from lowland import Late, MomentumSAM, Plain
from lowland.core.errors import UsageError

MU = 0.9
BUFFERED = [key for key in BASES if key != "sgd"]


def offset(v, rho):
    """`-rho v / ||v||`, nothing where there is no momentum."""
    return scale(v, -rho / (norm(v) + TINY))


def efficient(rho, batches, lrs):
    """The paper's form without extra memory: the weights that live between steps are the displaced ones."""
    v = zeros(PROBLEM.weights(1))
    live, path, back = PROBLEM.weights(1), [], []
    for batch, lr in zip(batches, lrs, strict=True):
        g = PROBLEM.gradient(live, batch)
        w = add(live, offset(v, rho), -1.0)
        v = add(scale(v, MU), g)
        w = add(w, v, -lr)
        live = add(w, offset(v, rho))
        back.append(add(live, offset(v, rho), -1.0))  # as for an evaluation
        path.append(w)
    return path, back


@pytest.mark.parametrize("rho", [0.3, 3.0])
def test_n1_the_efficient_form_has_the_same_trajectory(rho):
    path, _ = efficient(rho, some(), LRS)
    run = Run(PROBLEM, PROBLEM.weights(1), MomentumSAM(rho=rho), sgd(momentum=MU))
    assert_same(trajectory(run, some(), LRS), path, SAME)
    assert_differ(path, path_of(Plain(), some(), optimizer=sgd(momentum=MU)))


@pytest.mark.parametrize("base", BUFFERED)
def test_n2_without_radius_it_is_the_base_optimizer(base):
    path = path_of(MomentumSAM(rho=0.0), some(), optimizer=BASES[base])
    assert_same(path, path_of(Plain(), some(), optimizer=BASES[base]), 0.0)


@pytest.mark.parametrize("base", BUFFERED)
def test_n2_the_first_step_is_the_base_optimizer_s(base):
    path = path_of(MomentumSAM(rho=3.0), some(2), optimizer=BASES[base])
    plain = path_of(Plain(), some(2), optimizer=BASES[base])
    assert_same(path[:1], plain[:1], 0.0)
    assert_differ(path[1:], plain[1:])


def test_n3_taking_the_offset_away_and_putting_it_back_is_the_identity():
    path, back = efficient(0.3, some(), LRS)
    assert_same(back, path, 1e-15)
    run = Run(PROBLEM, PROBLEM.weights(1), MomentumSAM(rho=3.0), MOMENTUM)
    for batch, lr in zip(some(4), LRS, strict=False):
        before = run.w
        run.optimizer.zero_grad()
        run.engine.backward(drive.to_torch(batch))
        assert_same([run.w], [before], 0.0)  # here the copy comes back, bit for bit
        run.step(batch, lr)


@pytest.mark.parametrize(
    ("base", "key"),
    [*((base, "momentum_buffer") for base in ("momentum", "nesterov", "dampening")), ("adamw", "exp_avg")],
)
def test_the_displacement_is_against_what_the_base_keeps(base, key):
    run = Run(PROBLEM, PROBLEM.weights(1), MomentumSAM(rho=0.7), BASES[base])
    trajectory(run, some(3), LRS[:3])
    for t in range(3, 6):
        kept = [run.optimizer.state[p][key].numpy().copy() for p in run.model.parameters()]
        assert_same([*points_of(run, PROBLEM.batch(t), 0.05)], [scale(kept, -0.7 / norm(kept))], SAME)


@pytest.mark.parametrize("beta", [0.5, 0.99])
def test_adam_s_bias_correction_would_change_nothing(beta):
    """One factor for all tensors: it cancels in v / ||v||."""

    def adam(params):
        return torch.optim.Adam(params, lr=0.1, betas=(beta, 0.9))

    run = Run(PROBLEM, PROBLEM.weights(1), MomentumSAM(rho=0.7), adam)
    trajectory(run, some(2), LRS[:2])
    kept = [run.optimizer.state[p]["exp_avg"].numpy() / (1 - beta**2) for p in run.model.parameters()]
    # but for the 1e-12 in the norm, of an exp_avg as short as 0.01
    assert_same([*points_of(run, PROBLEM.batch(2), 0.05)], [scale(kept, -0.7 / norm(kept))], 1e-9)


def test_the_loss_is_that_of_the_displaced_weights():
    run = Run(PROBLEM, PROBLEM.weights(1), MomentumSAM(rho=0.7), MOMENTUM)
    trajectory(run, some(3), LRS[:3])
    kept = [run.optimizer.state[p]["momentum_buffer"].numpy().copy() for p in run.model.parameters()]
    there = add(run.w, kept, -0.7 / norm(kept))
    assert run.step(PROBLEM.batch(3), 0.1) == pytest.approx(PROBLEM.loss(there, PROBLEM.batch(3)), rel=1e-10)


def test_sgd_without_momentum_is_refused():
    with pytest.raises(UsageError, match=r"momentum must be > 0 .* give SGD\(momentum=0.9\)"):
        Run(PROBLEM, PROBLEM.weights(1), MomentumSAM(), sgd())


def test_sgd_that_loses_its_momentum_is_refused():
    run = Run(PROBLEM, PROBLEM.weights(1), MomentumSAM(), sgd(momentum=0.9))
    before = run.w
    run.optimizer.param_groups[0]["momentum"] = 0.0
    with pytest.raises(UsageError, match="momentum must be > 0"):
        run.step(PROBLEM.batch(0), 0.1)
    assert_same([run.w], [before], 0.0)
    assert run.engine.step == 0


@pytest.mark.parametrize("kind", [torch.optim.NAdam, torch.optim.RMSprop, torch.optim.Adagrad])
@pytest.mark.parametrize("method", [MomentumSAM(), Late(inner=MomentumSAM(), start=9)], ids=["itself", "inside"])
def test_optimizers_whose_momentum_is_unknown_are_refused(method, kind):
    with pytest.raises(UsageError, match=rf"known for SGD, Adam and AdamW, but the optimizer is {kind.__name__}"):
        Run(PROBLEM, PROBLEM.weights(1), method, lambda params: kind(params, lr=0.1))


def test_a_group_without_momentum_does_not_move():
    def groups(model):
        first, *others = model.parameters()
        return [{"params": [first], "momentum": 0.0}, {"params": others}]

    run = Run(PROBLEM, PROBLEM.weights(1), MomentumSAM(rho=0.5), sgd(momentum=0.9), groups=groups)
    trajectory(run, some(2), LRS[:2])
    ((first, *others),) = points_of(run, PROBLEM.batch(2), 0.05)
    assert not first.any()
    assert norm(others) == pytest.approx(0.5, rel=1e-9)


def test_an_unused_parameter_has_no_momentum():
    run = Run(Spare(), PROBLEM.weights(1), MomentumSAM(rho=0.5), MOMENTUM)
    trajectory(run, some(3), LRS[:3])
    assert run.model.spare.grad is None
    assert torch.equal(run.model.spare.detach(), torch.ones(3, dtype=torch.float64))
    ((spare, *others),) = points_of(run, PROBLEM.batch(3), 0.05)
    assert not spare.any()
    assert norm(others) == pytest.approx(0.5, rel=1e-9)


def test_asking_for_it_leaves_the_optimizer_alone():
    run = Run(PROBLEM, PROBLEM.weights(1), MomentumSAM(), MOMENTUM)
    run.engine.backward(drive.to_torch(PROBLEM.batch(0)))
    assert not run.optimizer.state
    trajectory(run, some(2), LRS[:2])
    kept = [run.optimizer.state[p]["momentum_buffer"].clone() for p in run.model.parameters()]
    run.optimizer.zero_grad()
    run.engine.backward(drive.to_torch(PROBLEM.batch(2)))
    for p, buffer in zip(run.model.parameters(), kept, strict=True):
        assert torch.equal(run.optimizer.state[p]["momentum_buffer"], buffer)


def test_momentum_that_has_died_away_is_no_direction():
    run = Run(PROBLEM, PROBLEM.weights(1), MomentumSAM(rho=0.5), sgd(momentum=0.9))
    run.step(PROBLEM.batch(0), 0.1)
    for p in run.model.parameters():
        run.optimizer.state[p]["momentum_buffer"].zero_()
    assert norm(*points_of(run, PROBLEM.batch(1), 0.05)) == 0.0
    assert all(np.isfinite(x).all() for x in run.w)
