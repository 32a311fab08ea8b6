"""Memory that captured graphs write again: gradients, losses and other outputs, running statistics."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from guarded import CLOSE, data, loss_fn, method_for, net, optimizer_for
from problems import parted
from replayed import Hidden, captured
from torch import Tensor, nn

import lowland
from lowland.core.errors import UsageError
from lowland.methods import METHODS

Wrap = Callable[[nn.Module], nn.Module]


def as_it_is(model: nn.Module) -> nn.Module:
    return model


def by_hand(engine: lowland.Engine, batch: Any) -> None:
    """The caller cuts the batch of every pass in two."""
    for p in engine.passes(batch):
        with p:
            size = len(p.batch[0])
            for where in filter(len, torch.arange(size).chunk(2)):
                part = tuple(t[where] for t in p.batch)
                p.backward(engine.loss_fn(engine.model, part), share=len(where) / size, part=part)


def trained(
    key: str | lowland.Method,
    wrap: Wrap = as_it_is,
    *,
    model: Callable[[], nn.Module] = net,
    loss: Any = loss_fn,
    calls: int = 1,
    later: int | None = None,
    step: Callable[[lowland.Engine, Any], Any] = lowland.Engine.backward,
    **options: Any,
) -> list[Tensor]:
    """Weights and buffers after eight steps, and what the engine has told in each of them."""
    method = method_for(key) if isinstance(key, str) else key
    net = wrap(model())
    optimizer = optimizer_for(method.kind.lower(), net)
    loss = parted(key if isinstance(key, str) else "", loss)
    engine = lowland.Engine(method, net, optimizer, loss, total_steps=8 * calls, **options)
    told: list[Tensor] = []
    numbers = itertools.count()
    for number in range(8):
        if number == later:
            captured(net)
        optimizer.zero_grad()
        for _ in range(calls):
            step(engine, data(next(numbers)))
        optimizer.step()
        leaves = [engine.loss, *torch.utils._pytree.tree_leaves(engine.aux)]
        told += [t.clone() for t in leaves if isinstance(t, Tensor)]
    return [t.detach() for t in net.state_dict().values()] + told


@cache
def eager(key: str, **options: Any) -> list[Tensor]:
    """What no graph, of the plain network, trains to; made once for all that is compared with it."""
    return trained(key, **options)


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


every = pytest.mark.parametrize("key", METHODS)
WAYS: dict[str, dict[str, Any]] = {"steps": {}, "accumulated and cut": {"calls": 2, "micro_batch": 3}}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@every
@ways
def test_graphs_that_nothing_tells_of(key: str, way: dict[str, Any]) -> None:
    close(trained(key, Hidden, **way), eager(key, **way))


@every
@ways
def test_capture_after_the_engine_was_made(key: str, way: dict[str, Any]) -> None:
    close(trained(key, later=5, **way), eager(key, **way))


# without those that ask for a loss of their own
@pytest.mark.parametrize("key", [key for key in METHODS if key not in ("bisam", "functional-sam")])
@pytest.mark.parametrize("wrap", [captured, Hidden])
def test_batches_that_the_caller_cuts(key: str, wrap: Wrap) -> None:
    close(trained(key, wrap, step=by_hand), eager(key, step=by_hand))


@pytest.mark.parametrize("wrap", [captured, Hidden])
def test_a_method_that_keeps_two_gradients_late(wrap: Wrap) -> None:
    late = lowland.Late(start=0.6, inner=lowland.GSAM())
    close(trained(late, wrap), trained(late))


class Scored(nn.Module):
    """Outputs and losses come out of one captured graph, ``(B, 4)``."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        found = self.net(x[:, :5])
        losses = nn.functional.cross_entropy(found, x[:, 5].long(), reduction="none")
        return torch.cat([found, losses[:, None]], 1)


def scores(model: nn.Module, batch: Any) -> Tensor:
    return model(torch.cat([batch[0], batch[1][:, None].double()], 1))


LOSSES: dict[str, Any] = {
    "each": lambda m, b: scores(m, b)[:, 3],
    "mean": lambda m, b: scores(m, b)[:, 3].mean(),
    "sum": lambda m, b: lowland.Loss((found := scores(m, b))[:, 3].sum(), len(found), aux={"scores": found[:, :3]}),
}


HOW = ["whole", "cut", "by hand", "later"]
CASES = [
    *itertools.product(["sam", "k-sam", "esam", "micro-sam", "ausam"], ["each"], HOW),
    *itertools.product(["sam", "sampa"], ["mean"], ["whole", "by hand", "later"]),  # a mean is not cut
    *itertools.product(["sam", "micro-sam"], ["sum"], HOW),
]


@pytest.mark.parametrize(("key", "kind", "way"), CASES)
def test_losses_and_outputs_in_static_memory(key: str, kind: str, way: str) -> None:
    options: dict[str, Any] = {"cut": {"micro_batch": 3}, "by hand": {"step": by_hand}}.get(way, {})
    expected = eager(key, model=Scored, loss=LOSSES[kind], **options)
    if way == "later":
        close(trained(key, model=Scored, loss=LOSSES[kind], later=5), expected)
        return
    for wrap in (captured, Hidden):
        close(trained(key, wrap, model=Scored, loss=LOSSES[kind], **options), expected)


def normed() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


@pytest.mark.parametrize("key", ["sam", "sampa", "k-sam", "async-sam", "gsam"])
@pytest.mark.parametrize("later", [1, 3, 6])
def test_running_statistics_of_layers_captured_later(key: str, later: int) -> None:
    close(trained(key, model=normed, later=later), eager(key, model=normed))


@pytest.mark.parametrize("key", ["sampa", "micro-sam"])
def test_several_probes_in_one_pass_are_left_to_one_after_the_other(key: str) -> None:
    close(trained(key, captured, executor=lowland.Batched()), eager(key))


def test_memory_that_nobody_holds_is_refused_once() -> None:
    """The pool of ``torch.compile`` in a function that no module tells of."""
    model, twin = Hidden(net(), pool=True), net()
    engine = lowland.Engine(lowland.GSAM(), model, optimizer_for("gsam", model), loss_fn)
    with pytest.raises(UsageError, match=r"backward has overwritten those of an earlier pass.*call backward again"):
        engine.backward(data())
    assert engine.step == 0
    engine.backward(data())
    lowland.Engine(lowland.GSAM(), twin, optimizer_for("gsam", twin), loss_fn).backward(data())
    close([p.grad for p in model.parameters()], [p.grad for p in twin.parameters()])
