"""What several probes would compute otherwise in one pass is refused at the first step, or left to `Local` by Auto."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest
import torch
from problems import batch, net, sgd
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor
from torch.nn import functional

import lowland
from lowland.core.errors import UsageError
from lowland.executors import Auto, Batched, Local, auto

Forward = Callable[[Any, Tensor], Tensor]


def losses(model: nn.Module, b: Any) -> Tensor:
    return functional.cross_entropy(model(b[0]), b[1] % 3, reduction="none")


class Own(nn.Module):
    """Layers with a forward and state of the test's."""

    def __init__(self, run: Forward, state: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        self.run, self.first, self.norm, self.last = run, nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.table = nn.Embedding(7, 6)
        self.double()
        if state is not None:
            state(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def plain(m: Any, x: Tensor) -> Tensor:
    return m.last(m.norm(m.first(x)).tanh() + m.table(tokens(x)).mean(1))


def tokens(x: Tensor) -> Tensor:
    return x.abs().mul(3).long().clamp_max(6)


def also(more: Callable[[Any], Any]) -> Forward:
    """A forward that adds a term."""
    return lambda m, x: plain(m, x) + more(m) * x[:, :3]


def teacher(m: Any, x: Tensor) -> Tensor:
    m.eval()
    soft = plain(m, x).detach()
    m.train()
    return plain(m, x) + 0.1 * soft


def half_frozen(m: Any, x: Tensor) -> Tensor:
    m.norm.eval()
    y = plain(m, x)
    m.norm.train()
    return y


def other_momentum(m: Any, x: Tensor) -> Tensor:
    m.norm.momentum = 0.5
    y = plain(m, x)
    m.norm.momentum = 0.1
    return y


def uncounted(m: Any, x: Tensor) -> Tensor:
    n = m.norm
    h = functional.batch_norm(m.first(x), n.running_mean, n.running_var, n.weight, n.bias, training=True, momentum=0.1)
    return m.last(h)


def reversed_(m: Any, x: Tensor) -> Tensor:
    h = m.first(x)
    if h.requires_grad:
        h.register_hook(torch.neg)
    return m.last(h.tanh())


def written(write: Callable[[Any, Tensor], Any]) -> Forward:
    def run(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            write(m, m.first(x).mean(0))
        return plain(m, x)

    return run


def state(**values: Callable[[Any], Any]) -> Callable[[Any], None]:
    def give(m: Any) -> None:
        for name, value in values.items():
            setattr(m, name, value(m))

    return give


def over_one_storage(start: int) -> Callable[[Any], None]:
    def give(m: Any) -> None:
        memory = torch.randn(60, dtype=torch.float64)
        m.first.weight = nn.Parameter(memory[:30].view(6, 5))
        m.other = nn.Parameter(memory[start : start + 30])

    return give


PADDED = "must have no padding_idx under Batched"
NORM = "statistics of a BatchNorm in training must only be updated by it under Batched"
WEIGHTS = "must not write weights under Batched"
KEPT = "must take parameters from the model it is given"
VMAP = "must compute under torch.func.vmap what they compute without"
STATE = "must not write state under Batched"
INSIDE = "lets no probe write in place"

REFUSED: dict[str, tuple[Any, Forward, Any]] = {
    "padding_idx": (PADDED, plain, state(table=lambda _: nn.Embedding(7, 6, padding_idx=0).double())),
    "padding in forward": (
        PADDED,
        lambda m, x: m.last(functional.embedding(tokens(x), m.table.weight, padding_idx=0).mean(1)),
        None,
    ),
    "padding that no batch has": (
        PADDED,
        lambda m, x: m.last(functional.embedding(tokens(x).clamp_min(1), m.table.weight, padding_idx=0).mean(1)),
        None,
    ),
    "eval and train": (NORM, teacher, None),
    "norm in eval": (NORM, half_frozen, None),
    "momentum": (NORM, other_momentum, None),
    "uncounted": (NORM, uncounted, None),
    "running_mean": (NORM, also(lambda m: m.norm.running_mean.mean()), None),
    "running_var": (NORM, also(lambda m: m.norm.running_var.mean()), None),
    "num_batches_tracked": (NORM, also(lambda m: m.norm.num_batches_tracked * 0.1), None),
    "max_norm": (WEIGHTS, plain, state(table=lambda _: nn.Embedding(7, 6, max_norm=0.5).double())),
    "max_norm in forward": (
        WEIGHTS,
        lambda m, x: m.last(functional.embedding(tokens(x), m.table.weight, max_norm=0.5).mean(1)),
        None,
    ),
    "divided": (WEIGHTS, written(lambda m, _: m.first.weight.div_(m.first.weight.norm())), None),
    "kept": (KEPT, also(lambda m: m.kept[0].detach().square().mean()), state(kept=lambda m: [m.first.weight])),
    "kept data": (KEPT, also(lambda m: m.kept.square().mean()), state(kept=lambda m: m.first.weight.data)),
    "view": (
        KEPT,
        also(lambda m: m.view.square().mean()),
        lambda m: m.register_buffer("view", m.first.weight.detach().view(-1)),
    ),
    "one storage": ("share memory: .*other", also(lambda m: m.other.square().mean()), over_one_storage(0)),
    "overlap": ("share memory: .*other", also(lambda m: m.other.square().mean()), over_one_storage(20)),
    "requires_grad": (VMAP, reversed_, None),
    "class": (VMAP, lambda m, x: plain(m, x) * (1 + isinstance(m.last.weight, nn.Parameter)), None),
    "dictionary": (STATE, written(lambda m, h: m.kept.update(mean=h)), state(kept=lambda _: {"mean": torch.zeros(6)})),
    "empty dictionary": (STATE, written(lambda m, h: m.kept.update(mean=h)), state(kept=lambda _: {})),
    "list": (STATE, written(lambda m, h: m.kept.append(h)), state(kept=lambda _: [])),
    "new dictionary": (STATE, written(lambda m, h: setattr(m, "kept", {"mean": h})), state(kept=lambda _: {})),
    "attribute": (STATE, written(lambda m, h: setattr(m, "kept", h)), None),
    "new buffer": (STATE, written(lambda m, h: m.register_buffer("kept", h)), None),
    "integer": (STATE, written(lambda m, _: setattr(m, "n", m.n + 1)), state(n=lambda _: 0)),
    "float": (STATE, written(lambda m, _: setattr(m, "n", m.n * 2)), state(n=lambda _: 1.0)),
    "average of weights": (
        INSIDE,
        written(lambda m, _: m.other.mul_(0.9).add_(m.first.weight, alpha=0.1)),
        lambda m: m.register_buffer("other", torch.zeros(6, 5, dtype=torch.float64)),
    ),
}


def engine_of(text: str, executor: Any, run: Forward, given: Any, **options: Any) -> lowland.Engine:
    torch.manual_seed(0)
    model = Own(run, given)
    method = lowland.MicroSAM(m=2) if text == "micro-sam" else lowland.SAMPa()
    return lowland.Engine(method, model, sgd(model), options.pop("each", losses), executor=executor, **options)


def train(engine: lowland.Engine, steps: int) -> list[Tensor]:
    for step in range(steps):
        engine.backward(batch(step, 12))
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    return [t.detach().clone() for t in engine.model.state_dict().values()]


class Waves(Local):
    """Local that is asked as `Auto` is: together up to the first trial."""

    width = 2

    def begin(self, batch: Any) -> None:
        self.step = getattr(self, "step", -1) + 1
        self.width = 2 if self.step <= 3 else 1


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("text", ["micro-sam", "sampa"])
@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_differs_is_refused_at_the_first_step(case: Any, text: str) -> None:
    says, run, given = case
    if says is WEIGHTS and text == "sampa":
        pytest.skip("Local refuses it, too: the pass that reports is displaced")
    engine = engine_of(text, Batched(2), run, given)
    before = [t.clone() for t in engine.model.state_dict().values()]
    held, names = dict(vars(engine.model)), list(engine.model.state_dict())
    for _ in range(2):  # the refusal leaves nothing behind
        with pytest.raises(UsageError, match=rf"{says}.*use executor=Local\(\)"):
            engine.backward(batch(0, 12))
        assert all(map(torch.equal, engine.model.state_dict().values(), before))
        assert (dict(vars(engine.model)), list(engine.model.state_dict())) == (held, names)
        assert all(m.training for m in engine.model.modules())
        kept = getattr(engine.model, "kept", ())
        values = kept.values() if isinstance(kept, dict) else kept
        assert not any(torch.is_tensor(t) and is_batchedtensor(t) for t in values)
    engine_of(text, Local(), run, given).backward(batch(0, 12))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("text", ["micro-sam", "sampa"])
@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_auto_leaves_it_to_local(case: Any, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    says, run, given = case
    if says is WEIGHTS and text == "sampa":
        pytest.skip("Local refuses it, too")
    monkeypatch.setattr(auto, "perf_counter", cycle([0.0, 0.5, 10.0, 11.0]).__next__)  # Batched is faster
    executor = Auto(2)
    found = train(engine_of(text, executor, run, given), 6)
    assert executor.choice == ("refused" if says is not WEIGHTS else executor.choice) != "batched"
    assert all(map(torch.equal, found, train(engine_of(text, Waves(), run, given), 6)))


@pytest.mark.parametrize("text", ["micro-sam", "sampa"])
def test_a_later_change_is_refused_or_left_to_local(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "perf_counter", cycle([0.0, 0.5, 10.0, 11.0]).__next__)
    late = False

    def run(m: Any, x: Tensor) -> Tensor:
        return reversed_(m, x) if late else plain(m, x)

    measured, fixed = Auto(2), Batched(2)
    engines = [engine_of(text, executor, run, None) for executor in (measured, fixed)]
    for engine in engines:
        train(engine, 16)  # the next watched step is 16
    assert measured.choice == "batched"
    late = True
    with pytest.raises(UsageError, match=VMAP):
        engines[1].backward(batch(0, 12))
    engines[0].backward(batch(0, 12))
    assert measured.choice == "refused"


RIGHT: dict[str, tuple[Forward, Any]] = {
    "plain": (plain, None),
    "cumulative": (plain, state(norm=lambda _: nn.BatchNorm1d(6, momentum=None).double())),
    "twice": (lambda m, x: plain(m, x) + plain(m, 2 * x), None),
    "bag": (
        lambda m, x: plain(m, x) + m.last(m.bag(tokens(x))),
        state(bag=lambda _: nn.EmbeddingBag(7, 6, padding_idx=0, mode="sum").double()),
    ),
    "shapes": (also(lambda m: m.kept[0].shape[0] * 0.1), state(kept=lambda m: [m.first.weight])),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of EmbeddingBag
@pytest.mark.parametrize("text", ["micro-sam", "sampa"])
@pytest.mark.parametrize("case", RIGHT.values(), ids=RIGHT)
def test_what_is_right_is_answered_together(case: Any, text: str) -> None:
    found, expected = (train(engine_of(text, executor, *case), 5) for executor in (Batched(2), Together()))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


class Together(Local):
    """Local that is asked for two probes at once."""

    width = 2


def test_the_comparison_leaves_no_trace() -> None:
    calls = []

    def run(m: Any, x: Tensor) -> Tensor:
        calls.append(lowland.displaced())
        return functional.dropout(m.drop(plain(m, x)), 0.5)

    def give(m: Any) -> None:
        m.drop = nn.Dropout(0.5)

    engine = engine_of("micro-sam", Batched(2), run, give)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    engine.backward(batch(0, 12))
    assert torch.equal(torch.get_rng_state(), before)
    assert (engine.cost.probes, engine.cost.gradients, engine.cost.forwards) == (4, 2, 2)
    # Each of two tuples is compared, one pass together and two alone, and then answered; the first one reports.
    assert calls == [*[True] * 3, False, *[True] * 4]
    assert int(engine.model.norm.num_batches_tracked) == 2
    engine.step = 3
    engine.backward(batch(1, 12))
    assert calls[8:] == [False, True]


def test_shared_masks_are_those_of_a_local_that_is_asked_together() -> None:
    run: Forward = lambda m, x: functional.dropout(plain(m, x), 0.5)  # noqa: E731
    for text in ("micro-sam", "sampa"):
        found = []
        for executor in (Batched(2), Together()):
            engine = engine_of(text, executor, run, None, rng="shared")
            found.append([*train(engine, 4), torch.rand(3)])
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_outside_of_gradients() -> None:
    found = []
    for executor in (Batched(2), Local()):
        engine = engine_of("sampa", executor, plain, None)
        with torch.no_grad():
            engine.backward(batch(0, 12))
        found.append([p.grad for p in engine.params])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_low_precision_is_compared_by_its_own_rounding() -> None:
    def low(m: nn.Module, b: Any) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return losses(m, b)

    model = net(dtype=torch.float32)
    engine = lowland.Engine(lowland.SAMPa(), model, sgd(model), low, executor=Batched(2))
    for step in range(5):
        engine.backward(batch(step, 12, torch.float32))
