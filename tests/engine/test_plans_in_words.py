"""What a method of one's own gets wrong with memory, weights and readings: a sentence, and all as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from branches import of_a_cpu
from problems import batch, loss_fn, net, sgd

import lowland
from lowland.core import vec
from lowland.core.errors import ArgumentError, UsageError
from lowland.core.probe import Probe
from lowland.methods.base import Method


def method(plan: Any, **more: Any) -> Method:
    entries = {"plan": plan, "__annotations__": {}} | more
    kind: type[Method] = dataclass(frozen=True, kw_only=True)(type("Wrong", (Method,), entries))
    return kind()


def ending(do: Callable[[Any, Any, Any], Any], first: dict[str, Any]) -> Method:
    def plan(self: Any, engine: Any, batch: Any) -> Any:
        here = yield Probe(batch)
        do(self, engine, here)
        return here.loss, here.grad

    return method(plan, init=lambda self, params: dict(first))


def refused(own: Method, message: str, before: int = 0, kind: type[Exception] = UsageError) -> None:
    model = net()
    engine = lowland.Engine(own, model, sgd(model), loss_fn)
    for step in range(before):
        engine.backward(batch(step))
    weights = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(kind, match=message):
        engine.backward(batch(before))
    assert engine.step == before
    if before == 0:
        assert all(map(torch.equal, weights, model.parameters()))
        assert all(p.grad is None for p in model.parameters())


def test_a_plan_that_asks_nothing() -> None:
    def plan(self: Any, engine: Any, batch: Any) -> Any:
        if batch is None:
            yield
        return torch.zeros(()), vec.zeros(engine.params)

    refused(method(plan), "plan must ask for at least one reading, but that of Wrong returned without one")


def write(past: bool, start: int = 0) -> Callable[..., None]:
    def do(self: Any, engine: Any, here: Any) -> None:
        if engine.step >= start:
            for p, g in zip(engine.params, here.grad, strict=True):
                (p.data if past else p).sub_(g)

    return do


@pytest.mark.parametrize("past", [pytest.param(True, marks=of_a_cpu), False], ids=["data", "version"])
def test_a_plan_that_writes_weights_has_them_put_back_in_the_first_step(past: bool) -> None:
    refused(ending(write(past), {}), "plan must leave the weights to the optimizer, but that of Wrong has written")


@pytest.mark.parametrize("start", [3, 5])
def test_a_plan_that_begins_to_write_weights_is_refused_in_that_step(start: int) -> None:
    refused(ending(write(False, start), {}), "plan must leave the weights to the optimizer", before=start)


def graph(self: Any, engine: Any, here: Any) -> None:
    with torch.enable_grad():
        engine.memory["m"] = engine.params[0].sum().expand(3)


CASES: dict[str, tuple[Callable[..., Any], str]] = {
    "reads": (
        lambda s, e, h: e.memory["velocity"],
        r"memory must have the entries .*\['m'\], .* reads 'velocity'; let",
    ),
    "sets": (lambda s, e, h: setattr(s, "count", 1), "a method must stay as it was made, but the plan of Wrong sets"),
    "graph": (graph, "memory must hold no graph, but the plan of Wrong has put a tensor .* into 'm'"),
    "shape": (
        lambda s, e, h: e.memory.update(m=torch.zeros(4)),
        r"a tensor in memory must keep its shape, .* put \(4,\) in the place of \(3,\) into 'm'",
    ),
    "later": (lambda s, e, h: e.later("x", h.grad), "engine.later must be given a tensor .* but was given a list"),
    "now": (lambda s, e, h: e.now(1.0), "engine.now must be given a tensor .* but was given a float"),
    "ascent": (lambda s, e, h: s.ascent(e, None), "ascent needs a gradient, but got None"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_plan_that_is_wrong_gets_a_sentence(case: str) -> None:
    do, message = CASES[case]
    refused(ending(do, {"m": torch.zeros(3)}), message)


def test_an_error_of_the_plan_s_own_dictionaries_stays_what_it_is() -> None:
    refused(ending(lambda s, e, h: {}["m"], {"m": 0}), "m", kind=KeyError)


def test_a_loss_with_a_graph_is_detached() -> None:
    def plan(self: Any, engine: Any, batch: Any) -> Any:
        here = yield Probe(batch)
        with torch.enable_grad():
            return engine.params[0].sum() * 0 + here.loss, here.grad

    model = net()
    engine = lowland.Engine(method(plan), model, sgd(model), loss_fn)
    assert not engine.backward(batch(0)).requires_grad


@pytest.mark.parametrize("name", ["plan", "init"])
def test_methods_that_take_other_arguments_are_refused_when_the_engine_is_made(name: str) -> None:
    def plan(self: Any, engine: Any, batch: Any) -> Any:
        here = yield Probe(batch)
        return here.loss, here.grad

    wrong = {"plan": lambda self, engine: None, "init": lambda self: {}}[name]
    own = method(wrong if name == "plan" else plan, **({"init": wrong} if name == "init" else {}))
    model = net()
    with pytest.raises(ArgumentError, match=rf"{name} of a method must take \(self, .* but that of Wrong cannot"):
        lowland.Engine(own, model, sgd(model), loss_fn)
