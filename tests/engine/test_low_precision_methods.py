"""Every method on parameters in bf16 and fp16."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from conformance import SWITCHES, TEXTS, engine_of, every, model_for
from low_precision import every_dtype, inputs, trained
from problems import adamw, loss_fn, net, same, sgd, weights
from torch import Tensor

import lowland
from lowland.core import vec
from lowland.core.errors import UsageError

# What every method promises


@every_dtype
@every
def test_weights_stay_and_vectors_are_fp32(text: str, dtype: torch.dtype) -> None:
    engine = engine_of(text, model_for(text, dtype=dtype))
    for step in range(4):
        before = [p.detach().clone() for p in engine.params]
        engine.optimizer.zero_grad()
        engine.backward(inputs(step, dtype))
        assert same(before, [p.detach() for p in engine.params])
        assert {p.grad.dtype for p in engine.params if p.grad is not None} == {dtype}
        assert {t.dtype for key in engine.vector_keys for t in engine.memory[key]} <= {torch.float32}
        engine.optimizer.step()
    assert all(bool(p.isfinite().all()) for p in engine.params)


@every_dtype
@every
def test_a_resume_is_bit_for_bit(text: str, dtype: torch.dtype) -> None:
    def make() -> lowland.Engine:
        return engine_of(text, model_for(text, dtype=dtype))

    engine = make()
    trained(engine, range(3), dtype)
    saved = copy.deepcopy((engine.model.state_dict(), engine.state_dict(), engine.optimizer.state_dict()))
    expected = trained(engine, range(3, 6), dtype)
    other = make()
    other.model.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    other.optimizer.load_state_dict(saved[2])
    assert same(expected, trained(other, range(3, 6), dtype))


CHOOSING = ("k-sam", "esam", "ausam", "xsam:every")  # by losses, among which rounding decides
FIXED = "xsam:k=2,alpha=0.5"  # which does not choose


@pytest.mark.parametrize("text", [t for t in [*TEXTS.values(), *SWITCHES, FIXED] if not t.startswith(CHOOSING)])
def test_the_gradient_is_that_of_fp32_up_to_rounding(text: str) -> None:
    """The method in fp32, at the same weights in every step: a factor that is missing would be seen."""
    engine = engine_of(text, model_for(text, dtype=torch.bfloat16))
    twin = engine_of(text, model_for(text, dtype=torch.float32))
    for step in range(5):
        with torch.no_grad():
            for p, q in zip(twin.params, engine.params, strict=True):
                p.copy_(q)
        x, *rest = inputs(step, torch.bfloat16)
        engine.optimizer.zero_grad()
        twin.optimizer.zero_grad()
        engine.backward((x, *rest))
        twin.backward((x.float(), *rest))
        grads = zip([p.grad for p in engine.params], [q.grad for q in twin.params], strict=True)
        pairs = [(a.float(), b) for a, b in grads if b is not None]
        apart = sum(float((a - b).square().sum()) for a, b in pairs) ** 0.5
        assert apart < 0.1 * sum(float(b.square().sum()) for _, b in pairs) ** 0.5, step
        engine.optimizer.step()
        twin.optimizer.step()


@every_dtype
def test_plain_is_torch_s_own_training_bit_for_bit(dtype: torch.dtype) -> None:
    model, bare = net(dtype=dtype), net(dtype=dtype)
    engine, optimizer = lowland.Engine(lowland.Plain(), model, sgd(model), loss_fn), sgd(bare)
    for step in range(4):
        optimizer.zero_grad()
        loss_fn(bare, inputs(step, dtype)).mean().backward()
        optimizer.step()
    trained(engine, range(4), dtype)
    assert same(weights(model), weights(bare))


@every_dtype
@pytest.mark.parametrize(
    "base",
    [sgd, lambda m: adamw(m, eps=1e-3), lambda m: torch.optim.RMSprop(m.parameters(), lr=1e-3, eps=1e-3)],
    ids=["sgd", "adamw", "rmsprop"],
)
def test_sampa_looks_ahead_to_where_the_optimizer_goes(dtype: torch.dtype, base: Any) -> None:
    """The displacement in fp32 against a step of the same optimizer on fp32 copies of weights and state."""
    torch.manual_seed(0)
    model = net(dtype=dtype)
    engine = lowland.Engine(lowland.SAMPa(), model, base(model), loss_fn)
    trained(engine, range(3), dtype)
    twin = net(dtype=torch.float32)
    other = base(twin)
    with torch.no_grad():
        for p, q in zip(twin.parameters(), model.parameters(), strict=True):
            p.copy_(q)
    other.load_state_dict(copy.deepcopy(engine.optimizer.state_dict()))
    before = [p.detach().clone() for p in twin.parameters()]
    grad = [torch.randn_like(p) for p in twin.parameters()]
    for p, g in zip(twin.parameters(), grad, strict=True):
        p.grad = g.clone()
    other.step()
    found = engine.lookahead(grad)
    assert {t.dtype for t in found} == {torch.float32}
    for e, p, old in zip(found, twin.parameters(), before, strict=True):
        if isinstance(engine.optimizer, torch.optim.SGD | torch.optim.AdamW):
            torch.testing.assert_close(e, p.detach() - old, rtol=1e-3, atol=1e-6)
        else:  # a copy of the optimizer takes the step, and rounds as the optimizer does
            assert float((e - (p.detach() - old)).abs().max()) <= 2 * torch.finfo(dtype).eps * float(old.abs().max())


def test_momentum_is_read_in_fp32() -> None:
    model = net(dtype=torch.bfloat16)
    engine = lowland.Engine(lowland.MomentumSAM(), model, sgd(model), loss_fn)
    assert {t.dtype for t in engine.momentum()} == {torch.float32}
    trained(engine, range(2), torch.bfloat16)
    assert {t.dtype for t in engine.momentum()} == {torch.float32}


@dataclass(frozen=True, kw_only=True)
class Mean(lowland.Method):
    """A method of one's own whose memory begins in the parameters' dtype."""

    lost: bool = False

    def init(self, params: list[Tensor]) -> dict[str, Any]:
        return {"mean": [torch.zeros_like(p) for p in params]}

    def plan(self, engine: Any, batch: Any) -> Any:
        here = yield lowland.Probe(batch)
        engine.memory["mean"] = vec.lerp(engine.memory["mean"], here.grad, 0.5)
        return here.loss, [
            g.to(p.dtype) for g, p in zip(here.grad, engine.params, strict=True)
        ] if self.lost else here.grad


def test_memory_of_a_method_of_one_s_own_is_fp32_too() -> None:
    model = net(dtype=torch.bfloat16)
    engine = lowland.Engine(Mean(), model, sgd(model), loss_fn)
    trained(engine, range(2), torch.bfloat16)
    assert {t.dtype for t in engine.memory["mean"]} == {torch.float32}


def test_a_result_in_bf16_is_refused() -> None:
    model = net(dtype=torch.bfloat16)
    engine = lowland.Engine(Mean(lost=True), model, sgd(model), loss_fn)
    with pytest.raises(UsageError, match=r"returned a torch.bfloat16 tensor .* which needs a torch.float32 tensor"):
        engine.backward(inputs(0, torch.bfloat16))
