"""Methods of one's own that do it wrong: a sentence at the first step, and all as it was."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import batch, loss_fn, net, sgd

import lowland
from lowland.core import vec
from lowland.core.errors import LowlandError, UsageError
from lowland.core.probe import Probe
from lowland.methods.base import Method
from lowland.testing import check_method, method_checks


@dataclass(frozen=True, kw_only=True)
class Own(Method):
    """A plain step, which the ones below get wrong."""

    def init(self, params: Any) -> dict[str, Any]:
        return {"kept": vec.zeros(params), "t": 0}

    def plan(self, engine: Any, batch: Any) -> Any:
        here = yield Probe(batch)
        return self.end(engine, here)

    def end(self, engine: Any, here: Any) -> Any:
        return here.loss, here.grad


def ending(end: Any) -> type[Own]:
    return dataclass(frozen=True, kw_only=True)(type("Wrong", (Own,), {"end": end, "__annotations__": {}}))


def asking(plan: Any) -> type[Own]:
    return dataclass(frozen=True, kw_only=True)(type("Wrong", (Own,), {"plan": plan, "__annotations__": {}}))


def in_place(self: Any, engine: Any, here: Any) -> Any:
    engine.memory["kept"][0].add_(1)
    return here.loss, here.grad


def shorter(self: Any, engine: Any, here: Any) -> Any:
    engine.memory["kept"] = here.grad[1:]
    return here.loss, here.grad


def added(self: Any, engine: Any, here: Any) -> Any:
    engine.memory["more"] = 1
    return here.loss, here.grad


def removed(self: Any, engine: Any, here: Any) -> Any:
    del engine.memory["t"]
    return here.loss, here.grad


def yields(ask: Any) -> Any:
    def plan(self: Any, engine: Any, batch: Any) -> Any:
        here = yield ask(engine, batch)
        return here.loss, here.grad

    return plan


def no_generator(self: Any, engine: Any, batch: Any) -> Any:
    return torch.zeros(()), engine.params


ENDS = {
    "nothing": (lambda s, e, h: None, r"must return a tuple \(loss, gradient\), but that of Wrong returned nothing"),
    "gradient": (lambda s, e, h: h.grad, r"\(loss, gradient\), but that of Wrong returned a list of 6 entries"),
    "three": (lambda s, e, h: (h.loss, h.grad, 1), r"returned a tuple of 3 entries"),
    "number": (lambda s, e, h: (0.5, h.grad), r"a loss of shape \(\) first, .* a float of one value"),
    "losses": (lambda s, e, h: (h.losses, h.grad), r"a loss of shape \(\) first, .* of shape \(8,\)"),
    "short": (lambda s, e, h: (h.loss, h.grad[1:]), r"one tensor for each of 6 parameters, .* a list of 5 entries"),
    "tensor": (lambda s, e, h: (h.loss, h.grad[0]), r"one tensor for each of 6 parameters"),
    "dict": (lambda s, e, h: (h.loss, dict(enumerate(h.grad))), r"one tensor for each of 6 parameters, .* a dict"),
    "none": (lambda s, e, h: (h.loss, [None, *h.grad[1:]]), r"tensors like the parameters, .* for parameter 0"),
    "numpy": (lambda s, e, h: (h.loss, [np.zeros((8, 5)), *h.grad[1:]]), r"a ndarray of 8 entries for parameter 0"),
    "single": (
        lambda s, e, h: (h.loss, [g.float() for g in h.grad]),
        r"torch.float32 .* for parameter 0, which needs",
    ),
    "flat": (lambda s, e, h: (h.loss, [g.flatten() for g in h.grad]), r"of shape \(40,\) .* for parameter 0"),
    "in place": (in_place, r"replaced, not changed in place, but the plan of Wrong has changed 'kept'"),
    "shorter": (
        shorter,
        r"must keep its shapes and dtypes, but the plan of Wrong has put a list of 5 entries .* into 'kept'",
    ),
    "added": (added, r"entries that init made, but the plan of Wrong has added or removed \['more'\].*let init return"),
    "removed": (removed, r"added or removed \['t'\]"),
}
PLANS = {
    "no generator": (no_generator, r"plan must be a generator, .* but is a tuple; ask for at least one reading"),
    "batch": (
        yields(lambda e, b: b),
        r"must yield a Probe or a tuple of Probes, but yielded a tuple of Tensor, Tensor",
    ),
    "yields a dict": (yields(lambda e, b: {"batch": b}), r"yielded a dict; ask for loss and gradient"),
    "mixed": (yields(lambda e, b: (Probe(b), b)), r"yielded a tuple of Probe, tuple"),
    "empty": (yields(lambda e, b: ()), r"yielded a tuple of nothing"),
    "short at": (yields(lambda e, b: Probe(b, at=vec.zeros(e.params)[1:])), r"one tensor for each of 6 parameters"),
}
CASES = {k: (ending(end), m) for k, (end, m) in ENDS.items()} | {k: (asking(p), m) for k, (p, m) in PLANS.items()}


@pytest.mark.parametrize(("kind", "message"), CASES.values(), ids=CASES)
def test_what_a_plan_does_wrong_is_refused_at_the_first_step(kind: type[Method], message: str) -> None:
    model = net()
    engine = lowland.Engine(kind(), model, sgd(model), loss_fn)
    model.first.weight.grad = torch.ones_like(model.first.weight)
    before, held = [p.detach().clone() for p in engine.params], [p.grad for p in engine.params]
    memory = dict(engine.memory)
    with pytest.raises(UsageError, match=message):
        engine.backward(batch())
    assert all(torch.equal(p, b) for p, b in zip(engine.params, before, strict=True))
    assert all(p.grad is g for p, g in zip(engine.params, held, strict=True))
    assert (engine.step, engine.memory) == (0, memory)


@pytest.mark.parametrize("made", [None, [], {1: 2}])
def test_a_memory_that_is_no_dict_of_names_is_refused(made: Any) -> None:
    kind = dataclass(frozen=True, kw_only=True)(type("Wrong", (Own,), {"init": lambda s, p: made}))
    model = net()
    with pytest.raises(UsageError, match=r"init must return a dict from names to values, but that of Wrong returned"):
        lowland.Engine(kind(), model, sgd(model), loss_fn)


@dataclass(frozen=True, kw_only=True)
class Careless(Method):
    """Keeps the batch itself, and counts before its last probe."""

    def init(self, params: Any) -> dict[str, Any]:
        return {"batch": None}

    def plan(self, engine: Any, batch: Any) -> Any:
        held = batch if engine.memory["batch"] is None else engine.memory["batch"]
        engine.memory["batch"] = batch
        here = yield Probe(held)
        return here.loss, here.grad


def test_check_method_names_all_that_is_broken() -> None:
    with pytest.raises(AssertionError, match=r"Careless breaks 1 promises:\s+loaders_may_refill.*is not copied") as e:
        check_method(Careless())
    assert "weights_are_restored" not in str(e.value)
    check_method(Own())
    names = [name for name, _ in method_checks(Own())]
    assert len(names) == len(set(names)) == 9
    with pytest.raises(AssertionError, match="refuses every network and optimizer it is tried on: examples must be"):
        check_method(lowland.AUSAM())


def test_the_page_of_a_method_of_one_s_own_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "own_method.md").read_text(encoding="utf-8")
    found: dict[str, Any] = {"__name__": "page"}
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    for block in blocks:
        exec(compile(block, "own_method.md", "exec"), found)
    assert len([line for line in blocks[0].splitlines() if line.strip()]) <= 20
    with pytest.raises(LowlandError):
        found["USAM"](0.1)
