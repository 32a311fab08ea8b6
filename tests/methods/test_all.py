"""What every method promises, checked for every entry of METHODS: weights, memory, doors, resume."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conformance import (
    ALL,
    PARTIAL,
    SAMPA,
    at_radius,
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
from problems import batch, net, same, train, weights

import lowland
from lowland.core.errors import UsageError
from lowland.testing import CHECKS, trial_of


@every
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_promises(text: str, check: Any) -> None:
    check(trial_of(method_of(text)))


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
            train(lowland.Engine(method, model, base_for(text)(model), loss_for(text), rng="shared"), 10)
            return weights(model)

    found, base = run(at_radius(method_of(text), 0.0)), run(lowland.Plain())
    if text.startswith("micro"):
        # Sums of four parts round differently: 1e-12 is about 1000 roundings of float64.
        assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(found, base, strict=True))
    else:
        assert same(found, base)


@pytest.mark.parametrize("text", [t for t in ALL if t.startswith(("bisam", "functional-sam"))])
def test_passes_are_refused_where_the_method_has_a_loss_of_its_own(text: str) -> None:
    engine = engine_of(text)
    with pytest.raises(UsageError, match=r"asks for another loss.*call engine\.backward\(batch\)"):
        next(engine.passes(batch()))
    engine.backward(batch())


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
def test_batch_norm_statistics_move_once_for_every_unperturbed_look(text: str) -> None:
    model = net(norm=True)
    engine = engine_of(text, model)
    looks = engine.method.m if text.startswith("micro") else 1
    train(engine, 5)
    assert model.norm.num_batches_tracked.item() == 5 * looks


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
