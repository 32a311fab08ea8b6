"""What every method promises under scalers, compilers, fake tensors and degenerate batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import problems
import pytest
import torch
from conformance import (
    ALL,
    SAMPA,
    WAITING,
    base_for,
    calls_of_step,
    engine_of,
    every,
    loss_for,
    method_of,
    model_for,
    spoil,
    vectors_of,
)
from problems import batch, loss_fn, net, same, sgd, train, weights
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import lowland
from lowland.core import lagged


@every
@pytest.mark.parametrize("scale", [2.0**-3, 2.0**10])
def test_a_power_of_two_loss_scale_changes_nothing(text: str, scale: float) -> None:
    one = engine_of(text, model_for(text, dtype=torch.float32))
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    other = engine_of(text, model_for(text, dtype=torch.float32), scaler=scaler)
    for i in range(8):
        one.backward(batch(i, dtype=torch.float32))
        other.backward(batch(i, dtype=torch.float32))
        torch.nn.utils.clip_grad_norm_(one.params, 0.5)
        scaler.unscale_(other.optimizer)
        torch.nn.utils.clip_grad_norm_(other.params, 0.5)
        one.optimizer.step()
        scaler.step(other.optimizer)
        scaler.update()
        for engine in (one, other):
            engine.optimizer.zero_grad()
        assert same(weights(other.model), weights(one.model))


@every
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_an_overflow_in_any_pass_skips_the_step_and_leaves_memory(text: str, value: float) -> None:
    for step in (0, 3):
        for nth in range(1, calls_of_step(text, step, dtype=torch.float32) + 1):
            model = model_for(text, dtype=torch.float32)
            scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=10**6)
            engine = engine_of(text, model, scaler=scaler)
            for i in range(step + 1):
                if i == step:
                    mend = spoil(engine, nth, value)
                    before, memory = weights(model), vectors_of(engine)
                engine.backward(batch(i, dtype=torch.float32))
                scaler.step(engine.optimizer)
                scaler.update()
                engine.optimizer.zero_grad()
            assert same(weights(model), before)
            after = vectors_of(engine)
            if text in SAMPA:  # its documented way out is a cold start
                (key,) = (k for k in after if k.endswith("grad_y"))
                assert all(not t.any() for t in after[key])
            else:
                assert all(same(after[k], memory[k]) for k in memory)
            mend()
            engine.backward(batch(50, dtype=torch.float32))
            assert all(torch.isfinite(p.grad).all() for p in engine.params if p.grad is not None)


# Passes without a loss scale do less, and the same for every method; the base matters to those that look ahead of it.
UNSCALED = [(text, sgd, False) for text in ALL if text in (*SAMPA, "plain", "sam", "async-sam", "bisam", "micro-sam")]


@pytest.mark.parametrize(("text", "base", "scaled"), [*((text, problems.adamw, True) for text in ALL), *UNSCALED])
def test_no_host_synchronization(text: str, base: Any, scaled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Fake tensors have no values: .item(), bool() and tolist() raise. Only what is read late may be looked at.
    monkeypatch.setattr(lagged, "read", lambda tensor: [0.5] * tensor.numel())
    waited: list[torch.Tensor] = []
    monkeypatch.setattr(lowland.Engine, "now", lambda _, t: waited.append(t) or [0.5] * t.numel())
    with FakeTensorMode():
        model = problems.Net(norm=True, odd=True)
        options = {"scaler": Scaler()} if scaled else {}
        kinds = {"amsgrad": True} if scaled else {}  # which AdaSAM insists on
        engine = lowland.Engine(method_of(text), model, base(model, **kinds), loss_for(text), rng="shared", **options)
        inputs, targets = torch.empty(8, problems.FEATURES), torch.empty(8, dtype=torch.long)
        for _ in range(4):
            engine.backward((inputs, targets, torch.empty(8, dtype=torch.long)))
            for p in engine.params:  # the optimizer's own step is not what is tested
                p.grad = None
        assert engine.step == 4
    assert len(waited) == (4 if text in WAITING else 0), "WAITING lists the methods that wait for the device"
    assert all(t.numel() == 1 for t in waited)


class Scaler:
    """The part of GradScaler that the engine uses; the real one asks the host when it updates."""

    def is_enabled(self) -> bool:
        return True

    def scale(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs * torch.full((), 4.0)


def test_the_fake_tensor_test_notices_a_host_read() -> None:
    class Reads(lowland.Method):
        def plan(self, engine: lowland.Engine, batch: Any) -> lowland.Plan:
            here = yield lowland.Probe(batch)
            return here.loss * here.loss.item(), here.grad

    with FakeTensorMode():
        model = problems.Net()
        engine = lowland.Engine(Reads(), model, sgd(model), loss_fn)
        with pytest.raises(DataDependentOutputException):
            engine.backward((torch.empty(8, problems.FEATURES), torch.empty(8, dtype=torch.long)))


# One of each kind of passes is compiled in the midst of its steps: the others meet graphs that these have left, and
# compile only what is new.
COLD = ["plain", "sam", "sampa", "micro-sam", "looksam:k=3", "esam:mask=element", "bisam:phi=log", "async-sam"]


@pytest.fixture(scope="module")
def compiled() -> Iterator[Any]:
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):  # else it would be an eager model in the end
        yield torch.compile(net(norm=True), backend="aot_eager")


@every
def test_a_compiled_model_gives_the_same_steps(text: str, compiled: Any) -> None:
    if text in COLD:
        torch._dynamo.reset()
    plain, inner = net(norm=True), compiled._orig_mod
    inner.load_state_dict(plain.state_dict())
    one, other = engine_of(text, plain), engine_of(text, compiled)
    addresses = [p.data_ptr() for p in other.params]
    train(one, 5)
    train(other, 5)
    assert one.names == other.names
    assert [p.data_ptr() for p in other.params] == addresses
    # Compiled kernels may round differently: 1e-10 over five steps in float64.
    for a, b in zip(weights(plain), weights(inner), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)


@every
def test_zero_gradients_give_a_base_step(text: str) -> None:
    engine = engine_of(text, loss=loss_for(text, lambda losses: losses * 0.0))
    other = engine_of("plain", model_for(text), loss=lambda model, b: loss_fn(model, b) * 0.0, base=base_for(text))
    train(engine, 8)
    train(other, 8)
    assert not same(weights(engine.model), weights(model_for(text)))  # weight decay has moved them
    if text.startswith("sl-sam"):  # but not those that were not drawn
        assert all(torch.isfinite(w).all() for w in weights(engine.model))
    else:
        assert same(weights(engine.model), weights(other.model))


@every
def test_one_example_batches(text: str) -> None:
    engine = engine_of(text)
    before = weights(engine.model)
    train(engine, 8, size=1)
    assert all(torch.isfinite(w).all() for w in weights(engine.model))
    assert not same(weights(engine.model), before)


@every
@pytest.mark.parametrize("counted", [False, True])
def test_micro_batches_are_exact(text: str, counted: bool) -> None:
    if counted and text.startswith(("k-sam", "esam", "ausam")):
        pytest.skip("needs one loss per example")

    loss = loss_for(text, (lambda losses: lowland.Loss(losses.sum(), len(losses))) if counted else None)
    one, other = engine_of(text, loss=loss), engine_of(text, loss=loss, micro_batch=3)
    train(one, 8)
    train(other, 8)
    for a, b in zip(weights(one.model), weights(other.model), strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-12)  # parts are summed in another order


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # inductor's own imports are deprecated here and there
def test_a_model_compiled_by_inductor_trains_like_the_eager_one() -> None:
    torch._dynamo.reset()
    plain, inner = net(norm=True, dtype=torch.float32), net(norm=True, dtype=torch.float32)
    one, other = engine_of("sam", plain), engine_of("sam", torch.compile(inner))
    train(one, 5)
    train(other, 5)
    # Fused kernels round differently: 1e-4 over five steps in float32.
    for a, b in zip(weights(plain), weights(inner), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    assert inner.norm.num_batches_tracked.item() == 5  # the frozen second pass is a graph of its own
