"""What a plan may do unseen: each is refused in the step that does it, and lists, dicts and .grad are as before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from problems import batch, loss_fn, net, sgd

import lowland
from lowland.core import vec
from lowland.core.errors import ArgumentError, UsageError
from lowland.core.probe import Probe
from lowland.methods.base import Method
from lowland.planner.memory import LiveTensors


def method(plan: Any, init: Any = None) -> Method:
    entries = {"plan": plan, "__annotations__": {}} | ({} if init is None else {"init": init})
    kind: type[Method] = dataclass(frozen=True, kw_only=True)(type("Wrong", (Method,), entries))
    return kind()


def ending(do: Callable[..., Any] | None = None, give: Callable[..., Any] | None = None, init: Any = None) -> Method:
    """A plain step that does something at its end, or returns another gradient."""

    def plan(self: Any, engine: Any, batch: Any) -> Any:
        here = yield Probe(batch)
        if do is not None:
            do(engine, here)
        return here.loss, here.grad if give is None else give(engine, here)

    return method(plan, init)


def asking(ask: Callable[..., Any]) -> Method:
    """A plan whose second probe is wrong."""

    def plan(self: Any, engine: Any, batch: Any) -> Any:
        here = yield Probe(batch)
        there = yield ask(engine, batch, here)
        return here.loss, there.grad

    return method(plan)


def made(self: Any, params: Any) -> dict[str, Any]:
    return {"v": vec.zeros(params), "t": 0, "log": [], "d": {"x": [1]}, "s": {0}, "none": None}


def engine_of(own: Method) -> lowland.Engine:
    model = net()
    return lowland.Engine(own, model, sgd(model), loss_fn)


def keep(key: str, value: Callable[..., Any]) -> Callable[..., None]:
    return lambda e, h: e.memory.__setitem__(key, value(e, h))


def twice(plan_gives: list[Any]) -> list[Any]:
    return [*plan_gives[:3], plan_gives[1], *plan_gives[4:]]  # biases of 8 entries


IN_PLACE = {
    "an entry": lambda e, h: e.memory["v"].__setitem__(0, h.grad[0]),
    "append": lambda e, h: e.memory["log"].append(1),
    "a dict": lambda e, h: e.memory["d"].update(y=1),
    "a set": lambda e, h: e.memory["s"].add(1),
    "inside a dict": lambda e, h: e.memory["d"]["x"].append(2),
}
SHARED = {
    "weights": (ending(None, lambda e, h: list(e.params)), r"returned the weight first.weight itself for first.weight"),
    "their views": (ending(None, lambda e, h: [p.detach() for p in e.params]), r"the weight first.weight itself"),
    "one twice": (ending(None, lambda e, h: twice(h.grad)), r"another parameter, too, for second.bias"),
    "expanded": (
        ending(None, lambda e, h: [p.new_zeros(()).expand(p.shape) for p in e.params]),
        r"an expanded tensor, which cannot be clipped in place, for first.weight; return vec.clone",
    ),
    "views of memory": (
        ending(keep("v", lambda e, h: h.grad), lambda e, h: [g.detach() for g in h.grad], made),
        r"returned memory of 'v' for first.weight",
    ),
    "kept weights": (
        ending(keep("v", lambda e, h: list(e.params)), None, made),
        r"'v' of Wrong holds first.weight; keep",
    ),
    "another dtype": (
        ending(keep("v", lambda e, h: vec_float(h.grad)), None, made),
        r"keep its shapes and dtypes, .*32",
    ),
    "a late vector": (ending(keep("none", lambda e, h: h.grad), None, made), r"one from the start, .* 'none', .*zeros"),
    "no dict": (ending(lambda e, h: setattr(e, "memory", [1]), None, made), r"memory must stay a dict, .* a list of 1"),
    "wrt short": (asking(lambda e, b, h: Probe(b, wrt=[True])), r"each of 6 parameters, but the plan of Wrong gave 1"),
    "scalars": (asking(lambda e, b, h: Probe(b, at=[g.sum() for g in h.grad])), r"parameter 0 has shape \(\) and"),
    "rows": (asking(lambda e, b, h: Probe(b, at=[g[:1] for g in h.grad])), r"parameter 0 has shape \(1, 5\) and"),
    "single": (
        asking(lambda e, b, h: Probe(b, at=vec_float(h.grad))),
        r"shape \(8, 5\) and torch.float32, and must have \(8, 5\) and torch.float64",
    ),
    "whole": (asking(lambda e, b, h: Probe(b, at=[g.long() for g in h.grad])), r"torch.int64, and must have"),
    "late scalars": (asking(lambda e, b, h: Probe(b, at=lambda: [g.sum() for g in h.grad])), r"has shape \(\) and"),
    "late number": (asking(lambda e, b, h: Probe(b, at=lambda: 0.1)), r"at must be a displacement, .* but is 0.1"),
}


def vec_float(v: Any) -> list[torch.Tensor]:
    return [t.float() for t in v]


def refused(engine: lowland.Engine, message: str) -> None:
    first = engine.params[0]
    first.grad = torch.ones_like(first)
    weights, held, kept = vec.clone(engine.params), [p.grad for p in engine.params], copy.deepcopy(engine.memory)
    number = engine.step
    with pytest.raises(UsageError, match=message):
        engine.backward(batch())
    assert all(map(torch.equal, engine.params, weights))
    assert all(p.grad is g for p, g in zip(engine.params, held, strict=True))
    assert torch.equal(first.grad, torch.ones_like(first))
    assert engine.step == number
    assert str(engine.memory) == str(kept)


@pytest.mark.parametrize("change", IN_PLACE.values(), ids=IN_PLACE)
@pytest.mark.parametrize("step", [0, 2, 4])
def test_lists_and_dicts_in_memory_are_not_changed_in_place(change: Any, step: int) -> None:
    engine = engine_of(ending(lambda e, h: change(e, h) if e.step == step else None, None, made))
    for i in range(step):
        engine.backward(batch(i))
    refused(engine, r"memory must be replaced, not changed in place, but the plan of Wrong has changed '\w+'; write")


@pytest.mark.parametrize(("own", "message"), SHARED.values(), ids=SHARED)
def test_what_is_shared_or_does_not_fit_is_refused(own: Method, message: str) -> None:
    refused(engine_of(own), message)


def optimize(engine: lowland.Engine, here: Any) -> None:
    for p, g in zip(engine.params, here.grad, strict=True):
        p.grad = g
    engine.optimizer.step()


WRITES = {
    "a weight": lambda e, h: e.params[0].add_(1),
    "through a view": lambda e, h: e.params[0].detach().view(-1)[:1].zero_(),
    "the optimizer": optimize,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_plan_that_writes_weights_is_told_that_they_have_moved(write: Any) -> None:
    engine = engine_of(ending(write))
    with pytest.raises(
        UsageError, match=r"leave the weights to the optimizer, .* first.weight, so that they are not as"
    ):
        engine.backward(batch())
    assert engine.step == 0
    assert all(p.grad is None for p in engine.params)


def test_memory_that_init_makes_of_the_weights_would_move_with_them() -> None:
    with pytest.raises(
        UsageError, match=r"must not hold the weights themselves, .* 'anchor' of Wrong holds first.weight"
    ):
        engine_of(ending(init=lambda s, params: {"anchor": params}))
    with pytest.raises(UsageError, match=r"'d' of Wrong holds first.bias; keep a copy: vec.clone\(params\)"):
        engine_of(ending(init=lambda s, params: {"d": {"x": [params[1].view(2, 4)]}}))
    with pytest.raises(UsageError, match=r"'part' of Wrong holds first.weight"):
        engine_of(ending(init=lambda s, params: {"part": params[0].flatten()[3:7]}))
    engine_of(ending(init=lambda s, params: {"anchor": vec.clone(params)})).backward(batch())


@pytest.mark.parametrize("kept", ["v", "log", "d"])
def test_a_gradient_that_memory_holds_is_not_reached_by_clipping(kept: str) -> None:
    value = {"v": lambda e, h: h.grad, "log": lambda e, h: h.grad[:2], "d": lambda e, h: tuple(h.grad[:2])}[kept]
    engine = engine_of(ending(keep(kept, value), None, made))
    engine.backward(batch())
    before = vec.clone(engine.memory[kept])
    assert any(t.any() for t in before)
    for p in engine.params:
        p.grad.mul_(7)  # type: ignore[union-attr]
    assert all(map(torch.equal, engine.memory[kept], before))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"at": 0.05}, r"at must be a displacement, .* but is 0.05; compute it with self.ascent"),
        ({"at": torch.ones(6)}, r"but is a Tensor"),
        ({"at": {"w": torch.ones(6)}}, r"but is a dict"),
        ({"at": "abc"}, r"but is 'abc'"),
        ({"at": [torch.ones(1), None]}, r"but is a list of Tensor, NoneType"),
        ({"at": [np.ones(1)]}, r"but is a list of ndarray"),
        ({"wrt": torch.ones(6, dtype=torch.bool)}, r"wrt must hold one bool for each parameter, but is a Tensor"),
        ({"wrt": [0, 1]}, r"wrt must hold one bool for each parameter, but is a list of int"),
        ({"wrt": "weight"}, r"but is 'weight'"),
        ({"loss_fn": 3}, r"loss_fn of a Probe must be a function .* but is 3; leave it out"),
    ],
)
def test_a_probe_is_looked_at_when_it_is_made(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Probe(None, **fields)


def test_what_the_plan_raises_is_not_hidden_by_what_it_has_written() -> None:
    def plan(self: Any, engine: Any, batch: Any) -> Any:
        yield Probe(batch)
        engine.params[0].add_(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine_of(method(plan)).backward(batch())


def test_fields_without_the_decorator_are_refused() -> None:
    class Bare(Method):
        alpha: float = 0.5

        def plan(self, engine: Any, batch: Any) -> Any:
            here = yield Probe(batch)
            return here.loss, here.grad

    class Below(Bare):
        pass

    for kind in (Bare, Below):
        for fields in ({}, {"alpha": 1.0}):
            with pytest.raises(
                ArgumentError, match=r"Bare has the field alpha, .*@dataclass\(frozen=True, kw_only=True\)"
            ):
                kind(**fields)


class Inside(lowland.Plain):
    """A method of one's own."""


@pytest.mark.parametrize(
    ("made", "more"),
    [(lowland.Plain(), 0), (lowland.Late(start=1), 0), (Inside(), 1), (lowland.Late(start=1, inner=Inside()), 1)],
    ids=["lowland's", "around lowland's", "one's own", "around one's own"],
)
def test_only_plans_of_one_s_own_cost_a_copy_of_the_weights_in_the_first_step(made: Method, more: int) -> None:
    with LiveTensors() as meter:
        model = torch.nn.Linear(100, 100, bias=False)
        engine = lowland.Engine(made, model, sgd(model), lambda m, x: m(x).square().mean(1))
        engine.backward(torch.ones(1, 100))
    copies = meter.peak / (4 * 100 * 100)
    assert 3 + more <= copies < 3.5 + more  # the weights, a copy for a backward that moves them, the gradient
