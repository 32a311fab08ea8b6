"""Tensors that forward or the loss writes: once per step, by the pass that reports, and by hand the same numbers."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn
from written import (
    EXACT,
    MODELS,
    Ring,
    alike,
    around,
    data,
    engine_for,
    every_model,
    loss_fn,
    made,
    sam_by_hand,
    state,
    step,
)

from lowland import SAM, LookSAM, MicroSAM, SAMPa


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@every_model
@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_sam_is_that_by_hand_and_state_is_written_once(make, rho):
    model, twin = made(make), made(make)
    engine = engine_for(model, SAM(rho=rho))
    for i in range(4):
        expected = sam_by_hand(twin, data(i), rho)
        engine.optimizer.zero_grad()
        engine.backward(data(i))
        for p, g in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, g, **EXACT)
        alike(state(model), state(twin))
        engine.optimizer.step()
        with torch.no_grad():
            for p, g in zip(twin.parameters(), expected, strict=True):
                p -= 0.1 * g


@every_model
def test_at_radius_0_it_is_the_base_run(make):
    model, twin = made(make), made(make)
    engine, base = engine_for(model, SAM(rho=0)), torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(5):
        step(engine, data())
        base.zero_grad()
        loss_fn(twin, data()).mean().backward()
        base.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, **EXACT)
    alike(state(model), state(twin))


@every_model
def test_one_update_per_step_where_weights_stay(make):
    model, twin = made(make), made(make)
    engine = engine_for(model, SAM(rho=0.5), lr=0.0)
    for i in range(3):
        step(engine, data(i))
        loss_fn(twin, data(i))
    alike(state(model), state(twin))


def test_a_pointer_moves_by_the_batch():
    for method in (SAM(rho=0.5), LookSAM(rho=0.5, k=2), SAMPa(rho=0.5), MicroSAM(rho=0.5, m=2)):
        model = made(around(Ring))
        engine = engine_for(model, method)
        step(engine, data(size=4))
        assert int(model[1].pointer) == 4, method
        step(engine, data(1, size=4))
        assert int(model[1].pointer) == 8, method


class Criterion(nn.Module):
    """A loss with a running scale."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, out: Tensor, target: Tensor) -> Tensor:
        losses = (out - target).square().mean(1)
        with torch.no_grad():
            self.calls += 1
            self.scale.mul_(0.9).add_(0.1 * losses.mean())
        return losses / self.scale


class Task:
    def __init__(self, criterion) -> None:
        self.criterion = criterion

    def loss(self, model, batch):
        return self.criterion(model(batch[0]), batch[1])

    __call__ = loss


class Slotted:
    __slots__ = ("criterion",)

    def __init__(self, criterion) -> None:
        self.criterion = criterion

    def __call__(self, model, batch):
        return self.criterion(model(batch[0]), batch[1])


GLOBAL: dict = {}


def with_global(model, batch):
    return GLOBAL["criterion"](model(batch[0]), batch[1])


def given(criterion, model, batch):
    return criterion(model(batch[0]), batch[1])


def by_default(criterion):
    def loss(model, batch, criterion=criterion):
        return criterion(model(batch[0]), batch[1])

    return loss


def nested(criterion):
    inner = functools.wraps(loss_fn)(lambda out, y: criterion(out, y))
    return lambda model, batch: inner(model(batch[0]), batch[1])


def in_class(criterion):
    class Task2:
        crit = criterion

        @classmethod
        def loss(cls, model, batch):
            return cls.crit(model(batch[0]), batch[1])

    return Task2.loss


class Weighted:
    """A loss object that is no module, with tensors in attributes and in a dictionary."""

    def __init__(self) -> None:
        self.scale, self.counts = torch.ones(()), {"calls": torch.zeros(())}

    def __call__(self, model, batch):
        losses = (model(batch[0]) - batch[1]).square().mean(1)
        self.counts["calls"] += 1
        self.scale = 0.9 * self.scale + 0.1 * losses.detach().mean()
        return losses / self.scale


def test_a_loss_object_that_is_no_module_is_written_once():
    model, loss, base = made(MODELS["batch norm"]), Weighted(), Weighted()
    engine = engine_for(model, SAM(rho=0.5), loss, lr=0.0)
    for i in range(3):
        step(engine, data(i))
        base(model, data(i))
    assert int(loss.counts["calls"]) == 3
    torch.testing.assert_close(loss.scale, base.scale, **EXACT)


WAYS = {
    "closure": lambda c: lambda m, b: c(m(b[0]), b[1]),
    "global": lambda c: (GLOBAL.update(criterion=c), with_global)[1],
    "partial": lambda c: functools.partial(given, c),
    "method": lambda c: Task(c).loss,
    "object": Task,
    "slots": Slotted,
    "default": by_default,
    "nested": nested,
    "in a list": lambda c: (lambda parts: lambda m, b: parts[0]["x"](m(b[0]), b[1]))([{"x": c}]),
    "class attribute": in_class,
    "the module's forward": lambda c: (lambda f: lambda m, b: f(m(b[0]), b[1]))(c.forward),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_criterion_is_written_once_wherever_the_loss_has_it(way):
    model, twin, criterion, other = made(MODELS["batch norm"]), made(MODELS["batch norm"]), Criterion(), Criterion()
    engine = engine_for(model, SAM(rho=0.5), way(criterion))
    for i in range(3):
        expected = sam_by_hand(twin, data(i), 0.5, Task(other), other)
        engine.optimizer.zero_grad()
        engine.backward(data(i))
        for p, g in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, g, **EXACT)
    assert int(criterion.calls) == 3
    torch.testing.assert_close(criterion.scale, other.scale, **EXACT)
