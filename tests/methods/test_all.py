"""What every method promises, checked for every entry of METHODS."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import problems
import pytest
import torch
from problems import Trip, Wire, batch, loss_fn, net, same, sgd, train, weights
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import lowland
from lowland import lagged, state
from lowland.methods import METHODS, make

# Settings under which ten steps see all that a method does.
SHORT = {"vsam": "window=6,blocks=2,warmup=1,beta=0.5", "arsam": "window=6,blocks=2,warmup=1", "looksam": "k=3"}
EXTRA = ["sampa:lam=0", "sampa:lam=1", "sampa:lookahead=raw", "looksam:k=3,geometry=layerwise", "sam:geometry=adaptive"]
ALL = [f"{key}:{SHORT[key]}" if key in SHORT else key for key in METHODS] + EXTRA

every = pytest.mark.parametrize("text", ALL)


def engine_of(text: str, model: Any = None, *, loss: Any = loss_fn, base: Any = sgd, **options: Any) -> lowland.Engine:
    model = net() if model is None else model
    return lowland.Engine(make(text), model, base(model), loss, **options)


def calls_of_step(text: str, step: int) -> int:
    """How many passes a step takes."""
    wire = Wire(0, lambda loss: loss)
    engine = engine_of(text, loss=wire)
    train(engine, step)
    before = wire.calls
    engine.backward(batch(step))
    return wire.calls - before


def vectors_of(engine: lowland.Engine) -> dict[str, list[torch.Tensor]]:
    found = {k: v for k, v in engine.memory.items() if state.is_vec(v, engine.params)}
    return {k: [t.clone() for t in v] for k, v in found.items()}


@every
def test_backward_leaves_weights_bit_identical(text: str) -> None:
    engine = engine_of(text, net(odd=True))
    for i in range(8):
        before = weights(engine.model)
        engine.backward(batch(i))
        assert same(weights(engine.model), before)
        engine.optimizer.step()
        engine.optimizer.zero_grad()
        assert not same(weights(engine.model), before)


@every
@pytest.mark.parametrize("error", [Trip, KeyboardInterrupt])
def test_an_exception_in_any_pass_leaves_everything_as_it_was(text: str, error: type[BaseException]) -> None:
    def trip(loss: torch.Tensor) -> torch.Tensor:
        raise error

    for step in (0, 1, 3):
        for nth in range(1, calls_of_step(text, step + 1) + 1):
            engine = engine_of(text, net(norm=True))
            train(engine, step)
            engine.backward(batch(90))  # gradients to be kept
            params, held = weights(torch.nn.ParameterList(engine.params)), [p.grad for p in engine.params]
            memory, random, number = dict(engine.memory), engine.rng.getstate(), engine.step
            values = [g.clone() for g in held if g is not None]
            engine.work.loss_fn = Wire(nth, trip)
            with pytest.raises(error):
                engine.backward(batch(91))
            assert same(weights(torch.nn.ParameterList(engine.params)), params)
            assert all(p.grad is g for p, g in zip(engine.params, held, strict=True))
            assert same([p.grad for p in engine.params if p.grad is not None], values)
            assert engine.memory.keys() == memory.keys()
            assert all(engine.memory[k] is memory[k] for k in memory)
            assert (engine.rng.getstate(), engine.step) == (random, number)
            engine.work.loss_fn = loss_fn
            engine.backward(batch(91))  # and it goes on


@pytest.mark.parametrize("text", [t for t in ALL if not t.startswith("sampa")])
def test_rho_zero_is_the_base_optimizer(text: str) -> None:
    def run(method: lowland.Method) -> list[torch.Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            # micro-sam sees micro-batches: neither its BatchNorm nor its masks are the whole batch's.
            kinds = {} if text.startswith("micro") else {"norm": True, "dropout": 0.3}
            model = net(**kinds)
            train(lowland.Engine(method, model, sgd(model), loss_fn, rng="shared"), 10)
            return weights(model)

    found, base = run(make(text, rho=0.0)), run(lowland.Plain())
    if text.startswith("micro"):
        # Sums of four parts round differently: 1e-12 is about 1000 roundings of float64.
        assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(found, base, strict=True))
    else:
        assert same(found, base)


@every
@pytest.mark.parametrize("at", [1, 4, 5])
def test_resume_in_the_middle_equals_the_uninterrupted_run(text: str, at: int) -> None:
    def fresh() -> lowland.Engine:
        return engine_of(text, net(norm=True, dropout=0.2), rng="shared", seed=3)

    with torch.random.fork_rng():
        torch.manual_seed(1)
        engine = fresh()
        train(engine, at)
        file = io.BytesIO()
        parts = {"model": engine.model.state_dict(), "optimizer": engine.optimizer.state_dict()}
        torch.save({**parts, "engine": engine.state_dict(), "random": torch.get_rng_state()}, file)
        train(engine, 9, start=at)

        file.seek(0)
        saved = torch.load(file, weights_only=True)
        resumed = fresh()
        resumed.model.load_state_dict(saved["model"])
        resumed.optimizer.load_state_dict(saved["optimizer"])
        resumed.load_state_dict(state_dict=saved["engine"])
        torch.set_rng_state(saved["random"])
        train(resumed, 9, start=at)
    assert same(weights(resumed.model), weights(engine.model))
    assert resumed.step == engine.step
    assert resumed.cost.gradients == engine.cost.gradients


@every
def test_passes_equal_backward(text: str) -> None:
    one, other = engine_of(text, net(norm=True)), engine_of(text, net(norm=True))
    for i in range(8):
        one.backward(batch(i))
        for p in other.passes(batch(i)):
            with p:
                p.backward(loss_fn(other.model, p.batch))
        for engine in (one, other):
            engine.optimizer.step()
            engine.optimizer.zero_grad()
        assert same(weights(other.model), weights(one.model))
    assert one.cost.gradients == other.cost.gradients


@every
@pytest.mark.parametrize("scale", [2.0**-3, 2.0**10])
def test_a_power_of_two_loss_scale_changes_nothing(text: str, scale: float) -> None:
    one = engine_of(text, net(dtype=torch.float32))
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    other = engine_of(text, net(dtype=torch.float32), scaler=scaler)
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
        for nth in range(1, calls_of_step(text, step) + 1):
            model = net(dtype=torch.float32)
            scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=10**6)
            engine = lowland.Engine(make(text), model, sgd(model), loss_fn, scaler=scaler)
            for i in range(step + 1):
                if i == step:
                    engine.work.loss_fn = Wire(nth, lambda loss: loss * value)
                    before, memory = weights(model), vectors_of(engine)
                engine.backward(batch(i, dtype=torch.float32))
                scaler.step(engine.optimizer)
                scaler.update()
                engine.optimizer.zero_grad()
            assert same(weights(model), before)
            after = vectors_of(engine)
            if text.startswith("sampa"):  # its documented way out is a cold start
                assert all(not t.any() for t in after["grad_y"])
            else:
                assert all(same(after[k], memory[k]) for k in memory)
            engine.work.loss_fn = loss_fn
            engine.backward(batch(50, dtype=torch.float32))
            assert all(torch.isfinite(p.grad).all() for p in engine.params if p.grad is not None)


@every
@pytest.mark.parametrize(("base", "scaled"), [(sgd, False), (problems.adamw, True)])
def test_no_host_synchronization(text: str, base: Any, scaled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Fake tensors have no values: .item(), bool() and tolist() raise. Only lagged.read may look.
    monkeypatch.setattr(lagged, "read", lambda tensor: [0.5] * tensor.numel())
    with FakeTensorMode():
        model = problems.Net(norm=True, odd=True)
        options = {"scaler": Scaler()} if scaled else {}
        engine = lowland.Engine(make(text), model, base(model), loss_fn, rng="shared", **options)
        inputs, targets = torch.empty(8, problems.FEATURES), torch.empty(8, dtype=torch.long)
        for _ in range(4):
            engine.backward((inputs, targets))
            for p in engine.params:  # the optimizer's own step is not what is tested
                p.grad = None
        assert engine.step == 4


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


@every
def test_a_compiled_model_gives_the_same_steps(text: str) -> None:
    torch._dynamo.reset()
    plain, inner = net(norm=True), net(norm=True)
    compiled = torch.compile(inner, backend="aot_eager")
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
def test_accumulation_adds(text: str) -> None:
    one, other = engine_of(text), engine_of(text)
    for i in range(0, 8, 2):
        parts = []
        for j in (i, i + 1):
            one.backward(batch(j))
            other.backward(batch(j))
            parts.append([p.grad for p in other.params])
            for p in other.params:
                p.grad = None
        total = [a + b for a, b in zip(*parts, strict=True)]
        assert same([p.grad for p in one.params], total)
        for p, g in zip(other.params, total, strict=True):
            p.grad = g
        for engine in (one, other):
            engine.optimizer.step()
            engine.optimizer.zero_grad()
    assert same(weights(one.model), weights(other.model))
    assert one.step == 8


@every
def test_zero_gradients_give_a_base_step(text: str) -> None:
    engine = engine_of(text, loss=lambda model, b: loss_fn(model, b) * 0.0)
    other = engine_of("plain", loss=lambda model, b: loss_fn(model, b) * 0.0)
    train(engine, 8)
    train(other, 8)
    assert not same(weights(engine.model), weights(net()))  # weight decay has moved them
    assert same(weights(engine.model), weights(other.model))


@every
def test_one_example_batches(text: str) -> None:
    engine = engine_of(text)
    before = weights(engine.model)
    train(engine, 8, size=1)
    assert all(torch.isfinite(w).all() for w in weights(engine.model))
    assert not same(weights(engine.model), before)


@every
@pytest.mark.parametrize("mean", [False, True])
def test_micro_batches_are_exact(text: str, mean: bool) -> None:
    def loss(model: torch.nn.Module, b: Any) -> torch.Tensor:
        losses = loss_fn(model, b)
        return losses.mean() if mean else losses

    one, other = engine_of(text, loss=loss), engine_of(text, loss=loss, micro_batch=3)
    train(one, 8)
    train(other, 8)
    for a, b in zip(weights(one.model), weights(other.model), strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-12)  # parts are summed in another order


@every
def test_unused_parameters_stay_untouched_and_frozen_ones_too(text: str) -> None:
    model = net(odd=True)
    engine = engine_of(text, model)
    kept = [t.clone() for t in (*model.unused.parameters(), *model.frozen.parameters())]
    for i in range(6):
        engine.backward(batch(i))
        assert all(p.grad is None for p in (*model.unused.parameters(), *model.frozen.parameters()))
        assert all(p.grad is not None for p in model.third.parameters())
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    assert same([*model.unused.parameters(), *model.frozen.parameters()], kept)


@every
def test_clipping_in_place_does_not_reach_memory(text: str) -> None:
    engine = engine_of(text)
    for i in range(5):
        engine.backward(batch(i))
        before = vectors_of(engine)
        for p in engine.params:
            p.grad.mul_(1e6)
        assert all(same(v, before[k]) for k, v in vectors_of(engine).items())


@every
def test_batch_norm_statistics_move_once_for_every_unperturbed_look(text: str) -> None:
    model = net(norm=True)
    engine = engine_of(text, model)
    looks = engine.method.m if text.startswith("micro") else 1
    train(engine, 5)
    assert model.norm.num_batches_tracked.item() == 5 * looks


@every
def test_a_method_is_a_value(text: str) -> None:
    method = make(text)
    assert method == copy.deepcopy(method) == make(text)
    assert hash(method) == hash(make(text))
    assert type(method).__name__ in repr(method)
    with pytest.raises(AttributeError):
        method.rho = 1.0  # type: ignore[misc]
