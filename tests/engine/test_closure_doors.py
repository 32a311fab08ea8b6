"""What a ClosureOptimizer refuses to be: plain training, a half-taken step, a door to optimizers that search."""

from __future__ import annotations

import copy

import pytest
import torch
from closures import BASES, Setup, assert_equal, batch, loss_fn
from optimizers import takes_lr_of_one_entry
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from lowland import ARSAM, SAM, VSAM, ClosureOptimizer, Engine, LookSAM
from lowland.core.errors import UsageError

# Without a closure


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_a_step_without_a_closure_would_be_plain_training_and_is_refused(base):
    setup = Setup(base=base)
    setup.optimizer.step(setup.closure(0))
    before, state = setup.weights(), copy.deepcopy(setup.base.state_dict())
    with pytest.raises(UsageError, match=r"step needs the closure.*call optimizer\.step\(closure\), or engine\.back"):
        setup.optimizer.step()
    assert_equal(setup.weights(), before)
    assert_equal(_tensors(state), _tensors(setup.base.state_dict()))


def _tensors(state):
    return [t for entry in state["state"].values() for t in entry.values() if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize(
    "zero", [0, 0.0, -0.0, torch.tensor(0.0), *[torch.zeros(1)] * takes_lr_of_one_entry()], ids=repr
)
def test_learning_rates_of_zero_make_it_the_base_step(zero):
    setup = Setup(base=lambda params: torch.optim.AdamW([{"params": [p]} for p in params], lr=0.1, foreach=False))
    for p in setup.model.parameters():
        p.grad = torch.ones_like(p)
    before = setup.weights()
    for group in setup.base.param_groups:
        group["lr"] = zero
    setup.optimizer.step()
    assert_equal(setup.weights(), before)
    assert len(setup.base.state) == len(list(setup.model.parameters()))
    setup.base.param_groups[-1]["lr"] = torch.tensor(1e-9) if isinstance(zero, torch.Tensor) else 1e-9
    with pytest.raises(UsageError, match="step needs the closure"):
        setup.optimizer.step()
    del setup.base.param_groups[-1]["lr"]  # whoever has none may well move
    with pytest.raises(UsageError, match="step needs the closure"):
        setup.optimizer.step()


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=repr)
def test_distributed_checkpoints_fill_an_empty_state(lr):
    setup = Setup(base=lambda params: torch.optim.AdamW(params, lr=lr, foreach=False))
    before = setup.weights()
    saved = get_optimizer_state_dict(setup.model, setup.optimizer)
    assert set(saved["state"]) == set(dict(setup.model.named_parameters()))
    assert_equal(setup.weights(), before)
    assert setup.base.param_groups[0]["lr"] == 0.1
    assert setup.engine.step == 0


def test_a_scaler_that_steps_it_without_a_closure_is_refused():
    setup = Setup()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_fn(setup.model, batch(0))).backward()
    with pytest.raises(UsageError, match="step needs the closure"):
        scaler.step(setup.optimizer)


# A base step that raises


class FailingError(Exception):
    pass


@pytest.mark.parametrize("error", [FailingError, KeyboardInterrupt])
@pytest.mark.parametrize(
    "method", [SAM(), LookSAM(k=2), VSAM(window=3), ARSAM(window=3, warmup=1)], ids=lambda m: m.kind
)
def test_a_base_step_that_raises_takes_the_engine_back(method, error):
    setup, twin = Setup(method), Setup(method)
    for s in (setup, twin):
        for step in range(3):
            s.optimizer.step(s.closure(step))
    cost, engine = setup.engine.cost, setup.engine
    before = copy.deepcopy(cost), engine.loss, engine.aux, dict(engine.memory), engine.rng.getstate()
    grads, values = zip(*[(p.grad, p.grad.clone()) for p in setup.model.parameters()], strict=True)
    buffers = [b.clone() for b in setup.model.buffers()]

    def fail(*args):
        raise error

    handle = setup.base.register_step_pre_hook(fail)
    with pytest.raises(error):
        setup.optimizer.step(setup.closure(3))
    handle.remove()
    assert engine.step == 3
    assert engine.cost is cost
    assert cost == before[0]
    assert engine.loss is before[1]
    assert engine.aux is before[2]
    assert all(engine.memory[k] is v for k, v in before[3].items())
    assert engine.rng.getstate() == before[4]
    assert all(p.grad is g for p, g in zip(setup.model.parameters(), grads, strict=True))
    assert_equal(grads, values)
    for b, old in zip(setup.model.buffers(), buffers, strict=True):
        b.copy_(old)  # the unperturbed pass has run, as in a step of torch that was interrupted
    for s in (setup, twin):
        for step in range(3, 7):
            s.optimizer.step(s.closure(step))
    assert_equal(setup.weights(), twin.weights())


def test_a_first_base_step_that_raises_leaves_no_gradient():
    setup = Setup()

    def fail(*args):
        raise FailingError

    setup.base.register_step_pre_hook(fail)
    with pytest.raises(FailingError):
        setup.optimizer.step(setup.closure(0))
    assert all(p.grad is None for p in setup.model.parameters())
    assert setup.engine.step == 0
    assert setup.engine.loss is None


# Optimizers that call the closure themselves


class Searching(torch.optim.SGD):
    def step(self, *, fn):
        return fn()


def test_optimizers_that_call_the_closure_are_refused_with_the_form_that_works():
    with pytest.raises(UsageError, match=r"LBFGS.step calls it itself; .*LBFGS\.step\(closure\).*engine\.backward"):
        Setup(base=lambda params: torch.optim.LBFGS(params))
    with pytest.raises(UsageError, match=r"Searching\.step calls it itself"):
        Setup(base=lambda params: Searching(params, lr=0.1))


def test_a_scheduler_on_the_base_does_not_hide_what_its_step_needs():
    model = nn.Linear(3, 1)
    base = torch.optim.LBFGS(model.parameters())
    torch.optim.lr_scheduler.StepLR(base, 1)
    with pytest.raises(UsageError, match=r"LBFGS\.step calls it itself"):
        ClosureOptimizer(Engine(SAM(), model, base, loss_fn))


def test_a_closure_optimizer_on_another_is_refused():
    setup = Setup()
    outer = Engine(SAM(), setup.model, setup.optimizer, loss_fn)
    with pytest.raises(UsageError, match=r"a ClosureOptimizer, which .*; make the engine with the base optimizer"):
        ClosureOptimizer(outer)


def regression(model, batch):
    return (model(batch[0])[:, 0] - batch[1]).square()


def by_hand(w, b, x, y, rho):
    """SAM's loss and gradient for (w·x + b - y)², with the derivatives written out."""
    n = len(x)
    r = x @ w + b - y
    gw, gb = 2 * x.T @ r / n, 2 * r.mean()
    norm = (gw.square().sum() + gb.square()).sqrt()
    at = x @ (w + rho * gw / norm) + (b + rho * gb / norm) - y
    return r.square().mean(), 2 * x.T @ at / n, 2 * at.mean()


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_with_a_closure_that_calls_the_engine_follows_sam_by_hand(search):
    torch.manual_seed(0)
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    model, rho = nn.Linear(3, 1).double(), 0.1
    w, b = model.weight.detach()[0].clone().requires_grad_(), model.bias.detach()[0].clone().requires_grad_()
    options = {"lr": 0.3, "max_iter": 5, "line_search_fn": search}
    lbfgs, other = torch.optim.LBFGS(model.parameters(), **options), torch.optim.LBFGS([w, b], **options)
    engine = Engine(SAM(rho=rho), model, lbfgs, regression)

    def closure():
        lbfgs.zero_grad()
        return engine.backward((x, y))

    def expected():
        with torch.no_grad():
            loss, w.grad, b.grad = by_hand(w, b, x, y, rho)
        return loss

    for _ in range(4):
        found, right = lbfgs.step(closure), other.step(expected)
        # Another order of summation, in float64, divided by differences of gradients and by ever shorter gradients.
        torch.testing.assert_close(found, right, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(model.weight[0], w, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(model.bias[0], b, rtol=1e-7, atol=1e-8)
    assert engine.step == lbfgs.state[model.weight]["func_evals"]
