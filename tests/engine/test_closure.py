from __future__ import annotations

import copy
import warnings

import pytest
import torch
from closures import BASES, Setup, assert_equal, batch, loss_fn
from torch import nn

from lowland import ARSAM, SAM, VSAM, LookSAM, MicroSAM, Plain, SAMPa
from lowland.core.errors import LowlandError, UsageError

METHODS = {
    "plain": Plain(),
    "sam": SAM(rho=0.1),
    "looksam": LookSAM(rho=0.1, k=3),
    "vsam": VSAM(rho=0.1, window=4),
    "arsam": ARSAM(rho=0.1, window=3),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@every_method
@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_standard_closure_equals_backward_and_step(method, base, set_to_none):
    by_closure, by_backward = Setup(method, base), Setup(method, base)
    for step in range(7):
        loss = by_closure.optimizer.step(by_closure.closure(step, set_to_none=set_to_none))
        expected = by_backward.engine.backward(batch(step))
        by_backward.base.step()
        by_backward.base.zero_grad()
        assert torch.equal(loss, expected)
        assert not loss.requires_grad
        assert_equal(by_closure.weights(), by_backward.weights())
    assert by_closure.engine.step == 7
    assert by_closure.engine.cost.gradients == by_backward.engine.cost.gradients


@pytest.mark.parametrize(("k", "calls"), [(1, 14), (3, 7 + 3), (5, 7 + 2)])
def test_looksam_calls_the_closure_as_often_as_it_asks(k, calls):
    setup = Setup(LookSAM(k=k))
    for step in range(7):
        setup.optimizer.step(setup.closure(step))
    assert setup.calls == calls


def test_the_base_optimizer_steps_once():
    setup, steps = Setup(), []
    setup.base.register_step_post_hook(lambda *args: steps.append("base"))
    setup.optimizer.register_step_post_hook(lambda *args: steps.append("closure"))
    setup.optimizer.step(setup.closure(0))
    assert steps == ["base", "closure"]


@pytest.mark.parametrize("of_closure", [True, False])
def test_schedulers_attach_to_either_without_warnings(of_closure):
    setup, twin = Setup(), Setup()
    optimizer = setup.optimizer if of_closure else setup.base
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=6)
        other = torch.optim.lr_scheduler.OneCycleLR(twin.base, max_lr=0.3, total_steps=6)
        for step in range(5):
            setup.optimizer.step(setup.closure(step))
            scheduler.step()
            twin.engine.backward(batch(step))
            twin.base.step()
            twin.base.zero_grad()
            other.step()
    assert setup.base.param_groups[0]["lr"] == setup.optimizer.param_groups[0]["lr"] == scheduler.get_last_lr()[0]
    assert_equal(setup.weights(), twin.weights())


def test_without_a_closure_it_is_refused_unless_every_learning_rate_is_0():
    setup = Setup()
    loss_fn(setup.model, batch(0)).backward()
    before = setup.weights()
    for lr in (0.1, torch.tensor(0.1)):
        setup.base.param_groups[0]["lr"] = lr
        with pytest.raises(UsageError, match=r"needs the closure, .* call optimizer\.step\(closure\), or engine\.back"):
            setup.optimizer.step()
    assert_equal(setup.weights(), before)
    for lr in (0.0, torch.tensor(0.0)):  # as torch's distributed checkpoints do it to fill the state
        setup.base.param_groups[0]["lr"] = lr
        assert setup.optimizer.step(closure=None) is None
    assert_equal(setup.weights(), before)
    assert len(setup.base.state) == 6
    assert setup.engine.step == 0


class Tripping(torch.optim.SGD):
    """Its step fails while ``trip`` is set."""

    trip = False

    def step(self, closure=None):
        if self.trip:
            raise RuntimeError("tripped")
        return super().step(closure)


def test_a_base_step_that_raises_takes_engine_and_gradients_back():
    setup = Setup(LookSAM(k=2), base=lambda params: Tripping(params, lr=0.1, momentum=0.9))
    setup.optimizer.step(setup.closure(0))
    marks = [torch.full_like(p, 7.0) for p in setup.engine.params]
    for p, mark in zip(setup.engine.params, marks, strict=True):
        p.grad = mark.clone()
    state, before = copy.deepcopy(setup.engine.state_dict()), setup.weights()
    setup.base.trip = True
    with pytest.raises(RuntimeError, match="tripped"):
        setup.optimizer.step(setup.closure(1))
    after = setup.engine.state_dict()
    assert (after["step"], after["values"], after["rng"]) == (1, state["values"], state["rng"])
    assert after["cost"] == state["cost"]
    for key, vector in state["vectors"].items():
        assert all(torch.equal(vector[n], after["vectors"][key][n]) for n in vector)
    assert all(torch.equal(p.grad, m) for p, m in zip(setup.engine.params, marks, strict=True))
    found = dict(zip(setup.model.state_dict(), before, strict=True))
    assert all(torch.equal(p, found[n]) for n, p in setup.model.named_parameters())


def test_the_closure_runs_with_gradients_even_under_no_grad():
    setup, twin = Setup(), Setup()
    with torch.no_grad():
        setup.optimizer.step(setup.closure(0))
    twin.optimizer.step(twin.closure(0))
    assert_equal(setup.weights(), twin.weights())


# Zeroing


def adding(setup):
    def closure():
        loss = loss_fn(setup.model, batch(0))
        loss.backward()
        return loss

    return closure


def test_a_closure_that_does_not_zero_is_refused_once_there_is_something_to_zero():
    setup = Setup()
    setup.optimizer.step(setup.closure(0))
    before, grads = setup.weights(), [p.grad for p in setup.model.parameters()]
    values = [g.clone() for g in grads]
    with pytest.raises(UsageError, match=r"closure must zero the gradients.*optimizer.zero_grad\(\).*engine.backward"):
        setup.optimizer.step(adding(setup))
    assert_equal(setup.weights()[:2], before[:2])
    assert [p.grad for p in setup.model.parameters()] == grads
    assert_equal(grads, values)
    setup.optimizer.step(setup.closure(1))
    assert setup.engine.step == 2


def test_a_closure_need_not_zero_what_is_zeroed_outside():
    setup, twin = Setup(), Setup()
    for step in range(3):
        setup.optimizer.step(adding(setup))
        setup.optimizer.zero_grad()
        twin.optimizer.step(twin.closure(0))
        assert setup.engine.step == step + 1
    assert_equal(setup.weights(), twin.weights())


def test_a_closure_may_clip_what_it_computed():
    setup = Setup()

    def closure():
        loss = setup.closure(0, set_to_none=False)()
        nn.utils.clip_grad_norm_(setup.model.parameters(), 0.1)
        return loss

    for _ in range(3):
        setup.optimizer.step(closure)
    assert setup.engine.step == 3


# Closures that are none


@pytest.mark.parametrize("result", [None, 0.5])
def test_a_closure_without_a_loss_is_refused(result):
    setup = Setup()
    before = setup.weights()[:2]

    def closure():
        setup.closure(0)()
        return result

    with pytest.raises(UsageError, match=rf"closure must return the loss, but returned {result}; end it with"):
        setup.optimizer.step(closure)
    assert_equal(setup.weights()[:2], before)
    assert setup.engine.step == 0


def test_a_closure_without_backward_is_refused():
    setup = Setup()
    before = setup.weights()[:2]
    with pytest.raises(LowlandError, match="backward"):
        setup.optimizer.step(lambda: loss_fn(setup.model, batch(0)))
    assert_equal(setup.weights()[:2], before)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [1, 2])
def test_an_exception_in_the_closure_leaves_all_as_it_was(error, call):
    setup, twin = Setup(LookSAM(k=2)), Setup(LookSAM(k=2))
    for s in (setup, twin):
        s.optimizer.step(s.closure(0))
        s.optimizer.step(s.closure(1))  # the next one is a refresh, of two passes
    before, grads = [p.detach().clone() for p in setup.model.parameters()], [p.grad for p in setup.model.parameters()]
    values, memory, calls = [g.clone() for g in grads], dict(setup.engine.memory), []

    def closure():
        loss = setup.closure(2)()
        calls.append(1)
        if len(calls) == call:
            raise error
        return loss

    buffers = [b.clone() for b in setup.model.buffers()]
    with pytest.raises(error):
        setup.optimizer.step(closure)
    assert_equal(setup.model.parameters(), before)
    assert all(p.grad is g for p, g in zip(setup.model.parameters(), grads, strict=True))
    assert_equal(grads, values)
    assert all(setup.engine.memory[k] is v for k, v in memory.items())
    assert setup.engine.step == 2
    # The unperturbed pass has moved BatchNorm's statistics, as an interrupted torch step would have.
    for b, old in zip(setup.model.buffers(), buffers, strict=True):
        b.copy_(old)
    for s in (setup, twin):
        s.optimizer.step(s.closure(2))
    assert_equal(setup.weights(), twin.weights())


# What is refused at once


@pytest.mark.parametrize("method", [SAMPa(), MicroSAM()])
def test_methods_that_need_the_batch_are_refused(method):
    name = type(method).__name__
    with pytest.raises(
        UsageError, match=rf"{name} keeps, cuts or reads batches, which a closure hides; call engine.backward"
    ):
        Setup(method)


def test_a_scaler_is_refused():
    with pytest.raises(UsageError, match=r"a GradScaler refuses closures.*train in bf16"):
        Setup(scaler=torch.amp.GradScaler("cpu"))
    Setup(scaler=torch.amp.GradScaler("cpu", enabled=False))


def test_micro_batches_are_refused():
    setup = Setup(micro_batch=2)
    with pytest.raises(UsageError, match="micro_batch"):
        setup.optimizer.step(setup.closure(0))
