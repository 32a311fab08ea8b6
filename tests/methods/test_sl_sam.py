"""Z1, and what else SL-SAM's formula implies for what it draws; its probabilities are in `test_sl_sam_bandit.py`.

Float64 throughout. What is equal in exact arithmetic agrees here to `SAME`: rounding times a few dozen steps.
"""

from __future__ import annotations

import math
from itertools import count

import numpy as np
import pytest
import torch
from problems import TripError, Wire, loss_fn, net, same, sgd, train, weights
from problems import batch as tensors
from reference.attacks import assert_leaves_alone_what_does_not_take_part
from reference.cases import BASES, LRS, MOMENTUM, PROBLEM, SAME, path_of, some
from reference.drive import Run, assert_same, to_torch
from reference.sampling import Watch
from reference.vectors import add, norm
from torch import nn

import lowland
from lowland import SAM, SLSAM
from lowland.core.errors import LossError


def active(run):
    return run.engine.memory["drawn"]["active"]


@pytest.mark.parametrize("base", BASES)
def test_z1_a_first_step_with_all_tensors_is_sam(base):
    path = path_of(SLSAM(rho=0.2, s=1), some(1), optimizer=BASES[base])
    assert_same(path, path_of(SAM(rho=0.2), some(1), optimizer=BASES[base]), SAME)


@pytest.mark.parametrize("seed", range(4))
def test_both_gradients_are_of_the_drawn_tensors_alone(seed):
    run = Run(PROBLEM, PROBLEM.weights(1), SLSAM(rho=0.3, s=0.5), MOMENTUM, seed=seed)
    for batch, lr in zip(some(), LRS, strict=True):
        watch, w = Watch(PROBLEM, batch), run.w
        run.engine.work.loss_fn = watch
        loss = run.step(batch, lr)
        g = [x if on else 0 * x for x, on in zip(PROBLEM.gradient(w, batch), active(run), strict=True)]
        e = [0.3 / norm(g) * x for x in g]
        assert_same([add(watch.looks[1].w, w, -1.0)], [e], SAME)
        g_s = PROBLEM.gradient(add(w, e), batch)
        for p, x, on in zip(run.engine.params, g_s, active(run), strict=True):
            assert (p.grad is not None) == on
            if on:
                np.testing.assert_allclose(p.grad.numpy(), x, rtol=SAME, atol=SAME)
        assert loss == pytest.approx(PROBLEM.loss(w, batch), rel=1e-12)


@pytest.mark.parametrize("base", ["momentum", "nesterov", "adamw"])
def test_tensors_that_rest_keep_weights_and_momentum(base):
    run = Run(PROBLEM, PROBLEM.weights(1), SLSAM(rho=0.2, s=0.4), BASES[base])
    rested = 0
    for batch in some():
        w, states = run.w, [dict(run.optimizer.state.get(p, {})) for p in run.engine.params]
        copies = [{k: v.clone() for k, v in state.items() if isinstance(v, torch.Tensor)} for state in states]
        run.step(batch, 0.1)
        for i, (p, on) in enumerate(zip(run.engine.params, active(run), strict=True)):
            if on:
                assert (run.w[i] != w[i]).any()
                continue
            rested += 1
            np.testing.assert_array_equal(run.w[i], w[i])  # no decay either
            state = run.optimizer.state.get(p, {})
            assert all(torch.equal(state[k], v) for k, v in copies[i].items())
            assert state.keys() == states[i].keys()
    assert rested > 10


def test_what_was_accumulated_before_stays():
    model = net()
    engine = lowland.Engine(SLSAM(s=0.4), model, sgd(model), loss_fn)
    seen = [False] * len(engine.params)
    for t in range(6):
        held = [p.grad for p in engine.params]
        copies = [None if g is None else g.clone() for g in held]
        engine.backward(tensors(t))
        for p, g, kept, on in zip(engine.params, held, copies, engine.memory["drawn"]["active"], strict=True):
            if not on:
                assert p.grad is g
                assert g is None or torch.equal(g, kept)
        seen = [a or b for a, b in zip(seen, engine.memory["drawn"]["active"], strict=True)]
        assert [p.grad is not None for p in engine.params] == seen


def test_draws_follow_the_seed():
    def draws(seed):
        run, found = Run(PROBLEM, PROBLEM.weights(1), SLSAM(s=0.5), seed=seed), []
        for batch in some():
            run.step(batch, 0.1)
            found.append(active(run))
        return found

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)
    assert all(any(draw) for draw in draws(3))


class Mostly(nn.Module):
    """A network of which backward reaches two tensors out of `2 + idle`."""

    def __init__(self, idle):
        super().__init__()
        self.idle = nn.ParameterList([nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(idle)])
        self.norm = nn.BatchNorm1d(5, affine=False, dtype=torch.float64)
        self.last = nn.Linear(5, 3, dtype=torch.float64)

    def forward(self, x):
        return self.last(self.norm(x))


@pytest.mark.parametrize("seed", range(5))
def test_a_draw_that_backward_does_not_reach_is_drawn_anew(seed):
    torch.manual_seed(0)
    model = Mostly(6)
    engine = lowland.Engine(SLSAM(s=0.2), model, sgd(model), loss_fn, seed=seed)
    probes = []
    for t in range(12):
        before = engine.cost.probes
        engine.backward(tensors(t))
        probes.append(engine.cost.probes - before)
        drawn = engine.memory["drawn"]["active"]
        used = [n.startswith("last") for n in engine.names]
        assert any(a and b for a, b in zip(drawn, used, strict=True))
        assert [p.grad is not None for p in engine.params] == [a and b for a, b in zip(drawn, used, strict=True)]
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    assert max(probes) > 2
    assert model.norm.num_batches_tracked.item() == 12  # the first look at a batch alone counts
    assert all(torch.equal(p, torch.ones(2, dtype=torch.float64)) for p in model.idle)


def test_after_ten_draws_that_are_not_reached_all_tensors_take_part():
    torch.manual_seed(0)
    model = Mostly(3000)
    method = SLSAM(s=0.0004)  # a draw is of one tensor, almost always an idle one
    engine = lowland.Engine(method, model, sgd(model), loss_fn)
    engine.backward(tensors())
    assert engine.cost.probes == 12
    assert all(engine.memory["drawn"]["active"])
    assert all(p.grad is not None for p in model.last.parameters())
    plain, other = Mostly(0), lowland.SAM(rho=0.01)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "idle" not in k})
    plain.norm.reset_running_stats()
    lowland.Engine(other, plain, sgd(plain), loss_fn).backward(tensors())
    for p, q in zip(model.last.parameters(), plain.last.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-14)


def test_a_loss_that_depends_on_no_parameter_is_still_refused():
    model = net()
    engine = lowland.Engine(SLSAM(), model, sgd(model), lambda model, b: model(b[0]).detach().sum(1))
    state = engine.rng.getstate()
    with pytest.raises(LossError, match="needs no gradient"):
        engine.backward(tensors())
    assert engine.rng.getstate() == state
    assert all(p.requires_grad for p in model.parameters())


def test_behind_a_closure_a_draw_that_is_not_reached_is_drawn_anew():
    torch.manual_seed(0)
    one, other = Mostly(6), Mostly(6)
    other.load_state_dict(one.state_dict())
    engine = lowland.Engine(SLSAM(), one, sgd(one), loss_fn)
    optimizer = lowland.ClosureOptimizer(lowland.Engine(SLSAM(), other, sgd(other)))
    for t in range(8):

        def closure(t=t):
            optimizer.zero_grad()
            loss = loss_fn(other, tensors(t)).mean()
            loss.backward()
            return loss

        engine.backward(tensors(t))
        engine.optimizer.step()
        engine.optimizer.zero_grad()
        optimizer.step(closure)
        assert same(weights(one), weights(other))


def test_a_single_tensor_is_always_drawn():
    torch.manual_seed(0)
    model = nn.Linear(5, 3, bias=False, dtype=torch.float64)
    engine = lowland.Engine(SLSAM(s=0.2), model, sgd(model), loss_fn)
    for t in range(6):
        engine.backward(tensors(t))
        assert model.weight.grad is not None
        assert engine.memory["p"] == pytest.approx([0.2])
        engine.optimizer.zero_grad()


def test_a_drawn_tensor_without_radius_has_its_plain_gradient():
    def groups(model):
        return [{"params": [p], "rho": rho} for p, rho in zip(model.parameters(), [0.0, 0.3, 0.0, 0.3], strict=True)]

    run = Run(PROBLEM, PROBLEM.weights(1), SLSAM(rho=0.2, s=0.3), MOMENTUM, groups=groups)
    plain = 0
    for batch in some():
        w = run.w
        run.step(batch, 0.1)
        if not active(run)[1] and not active(run)[3]:
            plain += 1
            for p, x, on in zip(run.engine.params, PROBLEM.gradient(w, batch), active(run), strict=True):
                assert not on or np.allclose(p.grad.numpy(), x, rtol=SAME, atol=SAME)
    assert plain > 1


def test_frozen_and_unused_parameters_are_left_alone():
    run = assert_leaves_alone_what_does_not_take_part(SLSAM(rho=0.2, s=0.5))
    assert len(run.engine.memory["p"]) == 3


def test_an_exception_in_any_pass_thaws_all_and_forgets_the_draw():
    def trip(loss):
        raise TripError

    for nth in count(1):
        model = net()
        engine = lowland.Engine(SLSAM(s=0.3), model, sgd(model), loss_fn)
        train(engine, 3)
        memory, state = dict(engine.memory), engine.rng.getstate()
        engine.loss_fn = engine.work.loss_fn = wire = Wire(nth, trip)
        try:
            engine.backward(tensors(3))
        except TripError:
            assert all(p.requires_grad for p in model.parameters())
            assert all(engine.memory[k] is memory[k] for k in memory)
            assert engine.rng.getstate() == state
            continue
        assert wire.calls == nth - 1 == 2
        break


def test_costs_weigh_the_drawn_share():
    run, expected = Run(PROBLEM, PROBLEM.weights(1), SLSAM(s=0.5)), 0.0
    for batch in some():
        run.step(batch, 0.1)
        expected += 2 * sum(active(run)) / 4
    assert run.engine.cost.weights == pytest.approx(expected)
    assert run.engine.cost.gradients == 20
    assert expected < 16


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_handed_on(value):
    run = Run(PROBLEM, PROBLEM.weights(1), SLSAM(s=0.5), MOMENTUM)
    batch = PROBLEM.batch(0)
    batch[0][4] = value
    before = run.w
    run.engine.backward(to_torch(batch))
    assert any(p.grad is not None and not p.grad.isfinite().all() for p in run.engine.params)
    assert_same([run.w], [before], 0.0)
