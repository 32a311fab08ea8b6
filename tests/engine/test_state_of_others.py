"""A state from a model with its parameters in another order, or of another dtype."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lowland import AUSAM, SAM, SLSAM, VSAM, XSAM, Engine, FriendlySAM, LookSAM, SAMPa
from lowland.core.errors import StateError


class Net(nn.Module):
    """Layers of equal shapes, made in a given order."""

    def __init__(self, order: str) -> None:
        super().__init__()
        for name in order:
            setattr(self, name, nn.Linear(4, 4))

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


def loss_fn(model, batch):
    x, y = batch[:2]
    return (model(x.to(model.a.weight.dtype)) - y).square().mean(1)


def batch(step: int = 0, size: int = 5):
    generator = torch.Generator().manual_seed(step)
    x, y = (torch.randn(size, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, y, torch.arange(size)


def engine_of(method, order: str = "abc", dtype: torch.dtype = torch.float64) -> Engine:
    torch.manual_seed(0)
    model = Net(order).to(dtype)
    return Engine(method, model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn)


def trained(method, steps: int = 4, **options) -> Engine:
    engine = engine_of(method, **options)
    for step in range(steps):
        engine.backward(batch(step))
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    return engine


@dataclass(frozen=True, kw_only=True)
class Own(SAM):
    """A method of one's own that keeps something for each parameter."""

    keep: str = "numbers"

    def init(self, params):
        first = {"numbers": None, "tensor": torch.zeros(len(params)), "nested": {}, "lists": [], "named": []}
        return {"mine": first.get(self.keep)}

    def plan(self, engine, batch):
        loss, grad = yield from super().plan(engine, batch)
        count = len(engine.params)
        engine.memory["mine"] = {
            "numbers": [0.5] * count,
            "tensor": torch.ones(count),
            "nested": {"a": {"b": (1,) * count}},
            "lists": [[1, 2, 3]] * count,
            "named": list(engine.names),
            "vector": [g.clone() for g in grad] if engine.step == 3 else None,
        }[self.keep]
        return loss, grad


@pytest.mark.parametrize(
    ("method", "keys"),
    [
        (SLSAM(s=0.5, alpha_p=1.0), "p, drawn, lagged values norms"),
        *((Own(keep=k), "mine") for k in ("numbers", "tensor", "nested", "lists", "vector")),
    ],
    ids=lambda value: getattr(value, "keep", None),
)
@pytest.mark.parametrize("how", ["names", "an older state", "loaded into the engine's own order"])
def test_values_by_position_are_refused_in_another_order(method, keys, how):
    state, other = trained(method).state_dict(), engine_of(method, order="cab")
    if how == "an older state":
        del state["names"], state["dtypes"]
    if how == "loaded into the engine's own order":  # as distributed checkpoints do it, which fill a dict of the engine
        state["parameters"] = {n: state["parameters"][n] for n in other.names}
    with pytest.raises(
        StateError, match=rf"keeps an entry per parameter in {keys}, but number 0 is a\.weight there and c\.weight here"
    ):
        other.load_state_dict(state)
    assert other.step == 0
    engine_of(method).load_state_dict(state)  # the same order


@pytest.mark.parametrize(
    "method",
    [LookSAM(k=2), FriendlySAM(), VSAM(window=4), SAMPa(), XSAM(), AUSAM(examples=9), Own(keep="named")],
    ids=lambda m: m.kind,
)
def test_all_other_memory_goes_by_name(method):
    engine, other = trained(method), engine_of(method, order="cab")
    other.load_state_dict(engine.state_dict())
    for key in engine.vector_keys:
        known = dict(zip(engine.names, engine.memory[key], strict=True))
        assert all(torch.equal(found, known[n]) for n, found in zip(other.names, other.memory[key], strict=True))
    other.model.load_state_dict(engine.model.state_dict())
    if not isinstance(method, VSAM | AUSAM | XSAM):  # which read the last parameters, or draw
        for each in (engine, other):
            each.backward(batch(9))
        mine, theirs = ({n: p.grad for n, p in zip(e.names, e.params, strict=True)} for e in (engine, other))
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("older", [False, True])
def test_a_kept_batch_belongs_to_the_dtype_of_the_parameters(older):
    state = trained(SAMPa()).state_dict()
    if older:
        del state["names"], state["dtypes"]
    other = engine_of(SAMPa(), dtype=torch.float32)
    with pytest.raises(
        StateError,
        match=r"same dtype, because SAMPa keeps floating-point tensors in batch, but a\.weight was torch.float64 there",
    ):
        other.load_state_dict(state)
    assert other.step == 0


@pytest.mark.parametrize("method", [LookSAM(k=2), FriendlySAM(), XSAM(), AUSAM(examples=9)], ids=lambda m: m.kind)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_vectors_and_tables_are_converted(method, dtype):
    state, other = trained(method).state_dict(), engine_of(method, dtype=dtype)
    before = {k: torch.utils._pytree.tree_map(lambda t: getattr(t, "dtype", None), v) for k, v in other.memory.items()}
    other.load_state_dict(state)
    found = {k: torch.utils._pytree.tree_map(lambda t: getattr(t, "dtype", None), v) for k, v in other.memory.items()}
    assert found == before
    other.backward(batch(5))
