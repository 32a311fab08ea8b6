"""What every method promises, checked for every entry of METHODS: weights, memory, doors, resume."""

from __future__ import annotations

import copy
import io
from itertools import count
from typing import Any

import pytest
import torch
from conformance import (
    ALL,
    PARTIAL,
    SAMPA,
    at_radius,
    calls_of_step,
    engine_of,
    every,
    lose_by,
    method_of,
    model_for,
    spoil,
    vectors_of,
)
from problems import TripError, Wire, batch, loss_fn, net, same, sgd, train, weights

import lowland
from lowland.errors import UsageError


@every
def test_backward_leaves_weights_bit_identical(text: str) -> None:
    engine = engine_of(text, model_for(text, odd=True))
    for i in range(8):
        before = weights(engine.model)
        engine.backward(batch(i))
        assert same(weights(engine.model), before)
        engine.optimizer.step()
        engine.optimizer.zero_grad()
        assert not same(weights(engine.model), before)


@every
@pytest.mark.parametrize("error", [TripError, KeyboardInterrupt])
def test_an_exception_in_any_pass_leaves_everything_as_it_was(text: str, error: type[BaseException]) -> None:
    def trip(loss: torch.Tensor) -> torch.Tensor:
        raise error

    for step in (0, 1, 3):
        for nth in count(1):
            engine = engine_of(text, net(norm=True))
            train(engine, step)
            engine.backward(batch(90))  # gradients to be kept
            asked = engine.cost.probes
            again = copy.deepcopy(engine)
            again.backward(batch(91))
            if nth > again.cost.probes - asked:
                break
            params, held = weights(torch.nn.ParameterList(engine.params)), [p.grad for p in engine.params]
            memory, random, number = dict(engine.memory), engine.rng.getstate(), engine.step
            values = [g.clone() for g in held if g is not None]
            lose_by(engine, Wire(nth, trip))
            with pytest.raises(error):
                engine.backward(batch(91))
            assert same(weights(torch.nn.ParameterList(engine.params)), params)
            assert all(p.grad is g for p, g in zip(engine.params, held, strict=True))
            assert same([p.grad for p in engine.params if p.grad is not None], values)
            assert engine.memory.keys() == memory.keys()
            assert all(engine.memory[k] is memory[k] for k in memory)
            assert (engine.rng.getstate(), engine.step) == (random, number)
            lose_by(engine, loss_fn)
            engine.backward(batch(91))  # and it goes on


@pytest.mark.parametrize("text", [t for t in ALL if t not in SAMPA and not t.startswith(PARTIAL)])
def test_rho_zero_is_the_base_optimizer(text: str) -> None:
    def run(method: lowland.Method) -> list[torch.Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            # micro-sam sees micro-batches: neither its BatchNorm nor its masks are the whole batch's.
            # async-sam's second pass is a quarter of the batch and leaves the random numbers elsewhere.
            dropout = 0.0 if text.startswith("async") else 0.3
            kinds = {} if text.startswith("micro") else {"norm": True, "dropout": dropout}
            model = net(**kinds)
            train(lowland.Engine(method, model, sgd(model), loss_fn, rng="shared"), 10)
            return weights(model)

    found, base = run(at_radius(method_of(text), 0.0)), run(lowland.Plain())
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


@pytest.mark.parametrize("text", [t for t in ALL if t.startswith("bisam")])
def test_passes_are_refused_where_the_method_has_a_loss_of_its_own(text: str) -> None:
    engine = engine_of(text)
    with pytest.raises(UsageError, match=r"asks for another loss.*call engine\.backward\(batch\)"):
        next(engine.passes(batch()))
    engine.backward(batch())


@pytest.mark.parametrize("text", [t for t in ALL if not t.startswith("bisam")])
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
        total = [a if b is None else b if a is None else a + b for a, b in zip(*parts, strict=True)]
        assert all(p.grad is t or torch.equal(p.grad, t) for p, t in zip(one.params, total, strict=True))
        for p, g in zip(other.params, total, strict=True):
            p.grad = g
        for engine in (one, other):
            engine.optimizer.step()
            engine.optimizer.zero_grad()
    assert same(weights(one.model), weights(other.model))
    assert one.step == 8


@every
def test_unused_parameters_stay_untouched_and_frozen_ones_too(text: str) -> None:
    model = model_for(text, odd=True)
    engine = engine_of(text, model)
    kept = [t.clone() for t in (*model.unused.parameters(), *model.frozen.parameters())]
    for i in range(6):
        engine.backward(batch(i))
        assert all(p.grad is None for p in (*model.unused.parameters(), *model.frozen.parameters()))
        if not text.startswith("sl-sam"):  # which lets most tensors rest
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
            if p.grad is not None:
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
    method = method_of(text)
    assert method == copy.deepcopy(method) == method_of(text)
    assert hash(method) == hash(method_of(text))
    assert type(method).__name__ in repr(method)
    with pytest.raises(AttributeError):
        method.rho = 1.0  # type: ignore[misc]


@every
def test_a_loader_may_refill_its_buffers(text: str) -> None:
    one, other = engine_of(text), engine_of(text)
    buffer = tuple(t.clone() for t in batch(0))
    for i in range(5):
        for target, source in zip(buffer, batch(i), strict=True):
            target.copy_(source)
        one.backward(batch(i))
        other.backward(buffer)
        for engine in (one, other):
            engine.optimizer.step()
            engine.optimizer.zero_grad()
        assert same(weights(other.model), weights(one.model))


@every
def test_a_nan_that_the_caller_skips_leaves_no_trace_in_memory(text: str) -> None:
    for step in (0, 1, 3):
        for nth in range(1, calls_of_step(text, step) + 1):
            engine = engine_of(text)
            train(engine, step)
            mend = spoil(engine, nth, float("nan"))
            engine.backward(batch(90))
            engine.optimizer.zero_grad()  # and no step: the caller has seen the NaN
            assert all(torch.isfinite(t).all() for v in vectors_of(engine).values() for t in v)
            mend()
            train(engine, 2, start=step)
            assert all(torch.isfinite(w).all() for w in weights(engine.model))


@every
def test_whole_gradient_says_what_every_step_asks_for(text: str) -> None:
    asked: list[bool] = []

    class Watching(lowland.Local):
        def run(self, work: Any, probes: tuple[lowland.Probe, ...]) -> tuple[lowland.Reading, ...]:
            asked[-1] |= any(
                p.at is None and p.grad and p.wrt is None and p.loss_fn is None and len(p.batch[0]) == 8 for p in probes
            )
            return super().run(work, probes)

    engine = engine_of(text, executor=Watching())
    for i in range(6):
        asked.append(False)
        engine.backward(batch(i))
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    assert all(asked) == engine.method.whole_gradient or text == "esam:mask=element"  # which asks for it all the same


@pytest.mark.parametrize(
    "text", [*ALL, *(f"{key}:ascent_gradient=local" for key in ("sam", "rst", "late:start=2,inner=sam"))]
)
def test_synchronized_says_what_all_gradients_are(text: str) -> None:
    asked: list[bool] = []

    class Watching(lowland.Local):
        def run(self, work: Any, probes: tuple[lowland.Probe, ...]) -> tuple[lowland.Reading, ...]:
            asked.extend(p.sync and p.wrt is None for p in probes if p.grad)
            return super().run(work, probes)

    train(engine := engine_of(text, executor=Watching()), 6)
    assert all(asked) == engine.method.synchronized
