"""What torch and its checkpoints see in a ClosureOptimizer."""

from __future__ import annotations

import copy

import pytest
import torch
from closures import BASES, Setup, assert_equal, loss_fn, network
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from lowland import SAM, ClosureOptimizer, Engine, SAMPa
from lowland.core.errors import ParameterError, UsageError


def test_groups_and_state_are_the_base_optimizer_s_own():
    setup = Setup()
    assert isinstance(setup.optimizer, torch.optim.Optimizer)
    assert setup.optimizer.param_groups is setup.base.param_groups
    assert len(setup.base.param_groups) == 1
    setup.optimizer.step(setup.closure(0))
    assert setup.optimizer.state is setup.base.state
    assert len(setup.base.state) == 6
    assert "SGD" in repr(setup.base)
    assert "lr: 0.1" in repr(setup.optimizer)


def test_state_dicts_are_the_base_optimizer_s_and_survive_loading():
    setup, twin = Setup(base=BASES["adamw"]), Setup(base=BASES["adamw"])
    for step in range(3):
        setup.optimizer.step(setup.closure(step))
    twin.model.load_state_dict(setup.model.state_dict())
    twin.optimizer.load_state_dict(state_dict=copy.deepcopy(setup.optimizer.state_dict()))  # torch shares tensors
    twin.engine.load_state_dict(setup.engine.state_dict())
    for s in (setup, twin):
        s.optimizer.step(s.closure(3))
    assert_equal(setup.weights(), twin.weights())
    assert twin.optimizer.param_groups is twin.base.param_groups


def test_a_new_group_reaches_the_base_and_stops_the_engine():
    setup, more = Setup(), nn.Parameter(torch.ones(1))
    setup.optimizer.add_param_group({"params": [more], "lr": 0.5})
    assert setup.base.param_groups[1]["params"] == [more]
    with pytest.raises(ParameterError, match="make a new Engine"):
        setup.optimizer.step(setup.closure(0))


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_distributed_checkpoints_save_and_load_it(base):
    setup, fresh = Setup(base=base), Setup(base=base)
    for step in range(3):
        setup.optimizer.step(setup.closure(step))
    saved = copy.deepcopy(get_optimizer_state_dict(setup.model, setup.optimizer))  # torch shares tensors
    before = fresh.weights()
    set_optimizer_state_dict(fresh.model, fresh.optimizer, saved)  # fills an empty state by a step of its own
    assert_equal(fresh.weights(), before)
    assert fresh.engine.step == 0
    fresh.model.load_state_dict(setup.model.state_dict())
    for s in (setup, fresh):
        s.optimizer.zero_grad()
        s.optimizer.step(s.closure(3))
    assert_equal(setup.weights(), fresh.weights())


@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01)], ids=["number", "tensor"])
def test_distributed_checkpoints_read_a_fresh_one(lr):
    setup = Setup(base=lambda params: torch.optim.AdamW(params, lr=lr, foreach=False))
    before = setup.weights()
    saved = get_optimizer_state_dict(setup.model, setup.optimizer)
    assert set(saved["state"]) == set(dict(setup.model.named_parameters()))
    assert_equal(setup.weights(), before)


def test_an_optimizer_that_calls_the_closure_itself_is_refused_with_the_form_that_works():
    with pytest.raises(UsageError, match=r"LBFGS\.step calls it itself; .*LBFGS\.step\(closure\) .* engine\.backward"):
        Setup(base=lambda params: torch.optim.LBFGS(params))


def test_several_optimizers_are_refused():
    model = network()
    engine = Engine(SAM(), model, [torch.optim.SGD([p], lr=0.1) for p in model.parameters()], loss_fn)
    with pytest.raises(UsageError, match=r"one optimizer, but this one has 6; call engine\.backward"):
        ClosureOptimizer(engine)


def test_lbfgs_with_a_closure_that_calls_the_engine_is_lbfgs_on_sam_gradients():
    torch.manual_seed(0)
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.randn(12, 1, dtype=torch.float64)
    models = [torch.nn.Linear(3, 1).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    a, b = (torch.optim.LBFGS(m.parameters(), lr=0.3, max_iter=4) for m in models)

    def mse(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    engine = Engine(SAM(rho=0.1), models[0], a, mse)

    def closure():
        a.zero_grad()
        return engine.backward((x, y))

    def by_hand():
        weights = list(models[1].parameters())
        loss = mse(models[1], (x, y))
        g = torch.autograd.grad(loss, weights)
        size = sum(t.square().sum() for t in g).sqrt()
        with torch.no_grad():
            saved = [w.clone() for w in weights]
            for w, t in zip(weights, g, strict=True):
                w += 0.1 * t / size
        up = torch.autograd.grad(mse(models[1], (x, y)), weights)
        with torch.no_grad():
            for w, t, s in zip(weights, up, saved, strict=True):
                w.copy_(s)
                w.grad = t
        return loss.detach()

    for _ in range(3):
        a.step(closure)
        b.step(by_hand)
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)  # rounding, amplified by the curvature estimate
    assert engine.step > 3


def test_a_preview_of_an_optimizer_that_needs_a_closure_is_refused_when_the_engine_is_made():
    model = network()
    lbfgs = torch.optim.LBFGS(model.parameters())
    with pytest.raises(UsageError, match=r"LBFGS\.step calls one itself; use SAMPa\(lookahead=\"raw\"\)"):
        Engine(SAMPa(), model, lbfgs, loss_fn)
    Engine(SAMPa(lookahead="raw"), model, lbfgs, loss_fn)
