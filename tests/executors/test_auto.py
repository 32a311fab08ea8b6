"""The executor that measures gives what `Local` gives, keeps its choice, and leaves no trace of its trials."""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import pytest
import torch
from conformance import method_of
from problems import Network, TripError, batch, loss_fn, net, same, sgd, weights
from ranks import on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import lowland
from lowland.core.errors import ArgumentError, StateError
from lowland.executors import Auto, Local, auto

FIRST = 3  # the first step that is measured: 0, 1 and 2 are watched


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time that a pass for all probes takes, in multiples of Local's."""

    def ticks(ratio: float) -> None:
        times: Iterator[float] = cycle([0.0, ratio, 10.0, 11.0])  # start and end of the trial, then of Local
        monkeypatch.setattr(auto, "perf_counter", lambda: next(times))

    ticks(0.5)
    return ticks


def engine_of(text: str, executor: Any, each: Any = loss_fn, model: Any = None, **options: Any) -> lowland.Engine:
    model = net() if model is None else model
    return lowland.Engine(method_of(text), model, sgd(model), each, executor=executor, **options)


def train(engine: lowland.Engine, steps: int, start: int = 0, size: int = 16) -> list[Tensor]:
    losses = []
    for step in range(start, start + steps):
        losses.append(engine.backward(batch(step, size)))
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    return [*weights(engine.model), torch.stack(losses)]


def inner(engine: lowland.Engine) -> Auto:
    executor = engine.executor.inner
    assert isinstance(executor, Auto)
    return executor


@pytest.mark.parametrize("ratio", [0.5, 2.0])
@pytest.mark.parametrize(
    ("text", "measured"), [("micro-sam", True), ("sampa", True), ("async-sam:share=1.0", True), ("async-sam", False)]
)
def test_training_is_that_of_local(text: str, measured: bool, ratio: float, clock: Any) -> None:
    clock(ratio)
    engine = engine_of(text, "auto")
    torch.manual_seed(1)
    found = train(engine, 24)
    torch.manual_seed(1)
    expected = train(engine_of(text, Local()), 24)
    chosen = ("batched" if ratio < 1 else "local") if measured else ""  # async-sam's two batches differ in size
    assert (inner(engine).choice, engine.width) == (chosen, 1 if chosen == "local" else 16)
    if chosen == "batched":
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    else:
        assert same(found, expected)


@pytest.mark.parametrize(("ratio", "choice"), [(0.94, "batched"), (0.96, "local"), (0.0, "batched"), (30.0, "local")])
def test_the_clock_chooses_once(ratio: float, choice: str, clock: Any) -> None:
    clock(ratio)
    engine = engine_of("micro-sam", "auto")
    waits = 0

    def wait(_: Any) -> None:
        nonlocal waits
        waits += 1

    auto._wait, original = wait, auto._wait
    try:
        train(engine, FIRST)
        assert (inner(engine).choice, waits) == ("", 0)
        train(engine, 5, FIRST)  # steps 3, 5, 6 and 7, each with two tuples, are eight trials
        assert (inner(engine).choice, waits) == (choice, 3 * 8)
        clock(1 / max(ratio, 0.1))
        train(engine, 5, 8)
        assert (inner(engine).choice, waits) == (choice, 3 * 8)
    finally:
        auto._wait = original
    assert engine.cost.gradients == 2 * engine.step  # trials are not counted


def test_the_slow_first_trial_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 100.0, 0.0, 1.0, *[0.0, 0.5, 0.0, 1.0] * 4, *[0.0, 9.0, 0.0, 1.0] * 3])
    monkeypatch.setattr(auto, "perf_counter", lambda: next(times))
    engine = engine_of("micro-sam", "auto")
    train(engine, 8)
    assert inner(engine).choice == "batched"
    assert next(times, None) is None


def saved(engine: lowland.Engine) -> Any:
    file = io.BytesIO()
    torch.save((engine.state_dict(), engine.model.state_dict(), engine.optimizer.state_dict()), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("ratio", [0.5, 2.0])
@pytest.mark.parametrize("pause", [2, 6, 12])  # before, between and after the trials
def test_a_resume_goes_on_bit_for_bit(pause: int, ratio: float, clock: Any) -> None:
    clock(ratio)
    engine, other = engine_of("micro-sam", "auto"), engine_of("micro-sam", "auto")
    train(engine, pause)
    state, model, optimizer = saved(engine)
    other.model.load_state_dict(model)
    other.optimizer.load_state_dict(optimizer)
    other.load_state_dict(state)
    rest = train(engine, 20 - pause, pause)
    clock(ratio if pause < 12 else 1 / ratio)  # a choice that was saved does not depend on the clock
    assert same(train(other, 20 - pause, pause), rest)
    assert inner(other).choice == inner(engine).choice == ("batched" if ratio < 1 else "local")


@pytest.mark.parametrize("pause", [3, 5])
def test_a_resume_before_a_refusal_goes_on_bit_for_bit(pause: int, clock: Any) -> None:
    first, second = (engine_of("sampa", "auto", model=Traced("dropout")) for _ in range(2))
    train(first, pause)
    draws = torch.get_rng_state()
    state, model, optimizer = saved(first)
    second.model.load_state_dict(model)
    second.optimizer.load_state_dict(optimizer)
    second.load_state_dict(state)
    rest = train(first, 8, pause)
    torch.set_rng_state(draws)
    assert same(train(second, 8, pause), rest)
    assert inner(first).choice == inner(second).choice == "refused"


def test_replaced_parameters_are_seen_after_the_choice(clock: Any) -> None:
    for executor in ("auto", lowland.Batched(4)):
        engine = engine_of("micro-sam", executor)
        train(engine, 9)
        assert engine.executor.substitutes
        engine.model.last.__dict__["_parameters"]["weight"] = nn.Parameter(engine.model.last.weight.detach().clone())
        with pytest.raises(lowland.core.errors.ParameterError, match=r"last\.weight is no longer the same tensor"):
            engine.backward(batch(9, 16))


def test_states_of_other_executors_and_damaged_ones(clock: Any) -> None:
    plain, measured = engine_of("micro-sam", None), engine_of("micro-sam", "auto")
    assert "executor" not in plain.state_dict()
    train(measured, 12)
    state = saved(measured)[0]
    plain.load_state_dict(state)
    measured.load_state_dict({k: v for k, v in state.items() if k != "executor"})
    assert inner(measured).choice == "batched"
    before = saved(measured)[0]
    good = {"choice": "local", "width": 4, "ratios": [1.0]}
    for damaged in ({"choice": "fast"}, {"ratios": ["1"]}, {"ratios": None}, {"width": 0}, {"width": "4"}):
        with pytest.raises(StateError, match=r"a choice among .* and a list of ratios, but is .* earlier checkpoint"):
            measured.load_state_dict({**state, "step": 3, "executor": good | damaged})
    assert saved(measured)[0].keys() == before.keys()
    assert (measured.step, inner(measured).choice) == (12, "batched")


class Traced(nn.Module):
    """A model whose forward writes a buffer, draws numbers, and counts its passes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.inside, self.calls, self.seen = kind, net(), 0, []
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        if not lowland.displaced():
            self.calls += 1
        y = self.inside(x)
        if self.kind == "buffer":
            self.count.add_(1)
            return y + 0.01 * self.count
        if self.kind == "attribute":
            self.seen.append(float(x.detach().sum()))
        if self.kind == "python":
            return y * random.random()
        if self.kind == "dropout":
            return nn.functional.dropout(y, 0.5, self.training)
        return y * (1.0 if y.sum().item() > 0 else 0.5) if self.kind == "item" else y


@pytest.mark.parametrize("kind", ["item", "buffer", "attribute", "python", "dropout"])
@pytest.mark.parametrize("text", ["micro-sam", "sampa"])
def test_what_cannot_be_answered_together_is_left_to_local_for_good(kind: str, text: str, clock: Any) -> None:
    found = []
    for executor in (Auto(4), Waves()):
        torch.manual_seed(2)
        random.seed(2)
        model = Traced(kind)
        engine = engine_of(text, executor, model=model)
        found.append([*train(engine, 12), torch.rand(3), torch.tensor([random.random(), model.calls, *model.seen])])
        if isinstance(executor, Auto):
            assert (executor.choice, engine.width) == ("refused", 1)
            assert "refused" in str(saved(engine)[0]["executor"])
    assert same(*found)


class Waves(Local):
    """Local that is asked as `Auto` is: together up to the first trial, then one after the other."""

    width = 4

    def begin(self, batch: Any) -> None:
        self.step = getattr(self, "step", -1) + 1
        self.width = 4 if self.step <= FIRST else 1


@pytest.mark.parametrize("ratio", [0.5, 2.0])
@pytest.mark.parametrize("text", ["micro-sam", "sampa"])
def test_masks_that_are_shared_are_measured_and_do_not_depend_on_the_clock(text: str, ratio: float, clock: Any) -> None:
    clock(ratio)
    found = []
    for executor in (Auto(4), Together()):
        torch.manual_seed(2)
        engine = engine_of(text, executor, model=Traced("dropout"), rng="shared")
        found.append(train(engine, 24))
        assert isinstance(executor, Local) or executor.choice == ("batched" if ratio < 1 else "local")
        assert engine.width == 4
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


class Together(Local):
    """Local that is asked for four probes at once."""

    width = 4


def counted(model: nn.Module, b: Any) -> lowland.Loss:
    return lowland.Loss((loss_fn(model, b) * (b[1] % 2)).sum(), (b[1] % 2).sum(), aux=b[0].sum())


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "loss": ({"each": counted}, "batched"),
    "mean": ({"each": lambda model, b: loss_fn(model, b).mean(), "text": "sampa"}, "batched"),
    "micro-batch of a part": ({"micro_batch": 4}, "batched"),
    "smaller micro-batch": ({"micro_batch": 3}, ""),
    "scaler": ({"scaler": torch.amp.GradScaler("cpu", init_scale=2.0**8)}, "batched"),
    "norm": ({"model": lambda: net(norm=True)}, "batched"),
    "width": ({"text": "micro-sam:m=8"}, "batched"),
}


@pytest.mark.parametrize(("options", "choice"), CASES.values(), ids=CASES)
def test_options_are_heeded(options: dict[str, Any], choice: str, clock: Any) -> None:
    found = []
    for executor in ("auto", Local()):
        given: dict[str, Any] = {"text": "micro-sam", **options}
        given["model"] = given.get("model", net)()
        engine = engine_of(given.pop("text"), executor, **given)
        found.append(train(engine, 14))
        assert executor != "auto" or inner(engine).choice == choice
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("error", [TripError(), KeyboardInterrupt()], ids=repr)
def test_what_is_raised_inside_a_trial_leaves_all_as_it_was(error: BaseException, clock: Any) -> None:
    raised: list[BaseException] = []

    def each(model: Any, b: Any) -> Tensor:
        if raised:
            raise raised[0]
        return loss_fn(model, b)

    engine = engine_of("micro-sam", "auto", each=each)
    train(engine, FIRST)
    before, draws = copy.deepcopy(engine.model.state_dict()), torch.get_rng_state()
    raised.append(error)
    with pytest.raises(type(error)):
        engine.backward(batch(FIRST, 16))
    assert engine.step == FIRST
    assert torch.equal(torch.get_rng_state(), draws)
    assert same(list(before.values()), list(engine.model.state_dict().values()))
    assert all(p.grad is None for p in engine.params)


def test_memory_bounds_how_many_are_asked_together() -> None:
    def width(count: int, dtype: Any = torch.float32) -> int:
        return Auto.of([torch.empty(count, dtype=dtype, device="meta")]).width

    assert [width(n << 20) for n in (1, 4, 5, 16, 32, 33, 1000)] == [16, 16, 12, 4, 2, 1, 1]
    assert width(16 << 20, torch.float64) == 2


def test_a_wide_model_is_not_measured(monkeypatch: pytest.MonkeyPatch, clock: Any) -> None:
    monkeypatch.setattr(auto, "BYTES", 1000)
    engine = engine_of("micro-sam", "auto")
    train(engine, 12)
    assert (inner(engine).choice, engine.width) == ("", 1)


@pytest.mark.parametrize("wrong", ["fast", "Auto", Auto])
def test_another_word_is_refused(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match=r'executor must be an Executor or "auto", but is .*; pass "auto", or a'):
        engine_of("micro-sam", wrong)
    with pytest.raises(ArgumentError, match="width must be an integer >= 1"):
        Auto(0)


def trained_on_ranks(kind: str) -> Any:
    rank = torch.distributed.get_rank()
    auto.perf_counter = cycle([0.0, 0.1 if rank else 9.0, 10.0, 11.0]).__next__  # the clocks disagree
    results = []
    for executor in ("auto", None):
        torch.manual_seed(5)
        model: Any = net()
        mesh = None
        if kind == "ddp":
            model = DistributedDataParallel(model)
        else:
            mesh = torch.distributed.init_device_mesh("cpu", (2,), mesh_dim_names=(kind,))
        method = method_of("micro-sam")
        engine = lowland.Engine(method, model, sgd(model), loss_fn, executor=executor, mesh=mesh)
        for step in range(10):
            engine.backward(batch(step + 100 * rank * (kind != "probe"), 16))
            engine.optimizer.step()
            engine.optimizer.zero_grad()
        results.append(weights(engine.model))
    return same(*results), results[0], engine.executor.state_dict()


@pytest.mark.parametrize("kind", ["ddp", "replicate", "probe"])
def test_ranks_choose_alike(kind: str) -> None:
    (alike, first, state), (alike_there, second, state_there) = on_ranks(2, trained_on_ranks, kind)
    assert alike
    assert alike_there
    assert same(first, second)
    assert state == state_there


def test_passes_are_run_by_the_caller(clock: Any) -> None:
    engine, other = engine_of("micro-sam", "auto"), engine_of("micro-sam", "auto")
    for step in range(8):
        engine.backward(batch(step, 16))
        for p in other.passes(batch(step, 16)):
            with p:
                p.backward(loss_fn(other.model, p.batch))
        for e in (engine, other):
            e.optimizer.step()
            e.optimizer.zero_grad()
    assert same(weights(engine.model), weights(other.model))
    assert (inner(engine).choice, inner(other).choice) == ("batched", "")
    assert isinstance(engine.model, Network)
