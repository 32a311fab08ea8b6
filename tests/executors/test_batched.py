"""Probes answered in one pass give what they give one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from conformance import method_of
from problems import TripError, batch, comparable, loss_fn, net, sgd
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention as attend
from torch.utils.checkpoint import checkpoint

import lowland
from lowland.core.errors import ArgumentError, LossError, UsageError
from lowland.core.probe import Probe
from lowland.executors.base import Work
from lowland.executors.batched import Batched
from lowland.executors.local import Local


class Watched(Batched):
    """Counts the tuples that it is asked and those that it leaves to `Local`."""

    asked = left = 0

    def run(self, work: Work, probes: tuple[Probe, ...]) -> Any:
        self.asked, self._local.run = self.asked + 1, self.leave  # type: ignore[method-assign]
        return super().run(work, probes)

    def leave(self, work: Work, probes: tuple[Probe, ...]) -> Any:
        self.left += 1
        return Local().run(work, probes)


def trained(executor: Any, text: str, model: Any, steps: int = 20, *, each: Any = loss_fn, size: int = 8) -> Any:
    engine = lowland.Engine(method_of(text), model, sgd(model), each, executor=executor)
    torch.manual_seed(1)
    losses = []
    for step in range(steps):
        losses.append(engine.backward(batch(step, size if step % 3 else size + 3, engine.params[0].dtype)))
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    return {**model.state_dict(), "losses": torch.stack(losses)}


def assert_close(found: Any, expected: Any, close: float) -> None:
    torch.testing.assert_close(comparable(found), comparable(expected), rtol=close, atol=close)


# float32: rounding errors of 1e-7 a step, by another order of summation, add up over the steps.
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@pytest.mark.parametrize(("norm", "size"), [(nn.BatchNorm1d, 16), (nn.LayerNorm, 9)])
@pytest.mark.parametrize(("text", "width"), [("sampa", 2), ("async-sam", 2), *(("micro-sam", w) for w in (2, 3, 4))])
def test_training_is_that_of_local(text: str, width: int, norm: Any, size: int, dtype: Any, close: float) -> None:
    # 16 for BatchNorm: over 2 examples it amplifies rounding to 5e-4, between two runs of Local as well.
    executor = Watched(width)
    expected, found = (trained(e, text, net(dtype=dtype, norm=norm), size=size) for e in (Local(), executor))
    assert_close(found, expected, close)
    # The two batches of async-sam differ in size; 9 examples in 4 parts are uneven, 16 and 12 are not.
    assert (executor.left == executor.asked) == (text == "async-sam")


def work_on(model: nn.Module, each: Any = loss_fn, **options: Any) -> Work:
    params = [p for p in model.parameters() if p.requires_grad]
    return Work(model, params, loss_fn=each, **{"scaler": None, "micro_batch": None, "rng": "free"} | options)


def two(work: Work, **options: Any) -> tuple[Probe, ...]:
    batches = [batch(i, 6, work.params[0].dtype) for i in range(2)]
    return Probe(batches[0], **options), Probe(batches[1], at=[0.1 * p.detach().cos() for p in work.params], **options)


def compare(make: Callable[[], Any], each: Any = loss_fn, ask: Any = two, left: int = 0, **options: Any) -> Work:
    """Ask both executors the same, check that they agree and leave the weights alone; return Batched's work."""
    work, other, executor = work_on(make(), each, **options), work_on(make(), each, **options), Watched()
    other.model.load_state_dict(work.model.state_dict())
    torch.manual_seed(3)
    expected, after, probes = Local().run(other, ask(other)), torch.rand(3), ask(work)
    before = [p.detach().clone() for p in work.params]
    torch.manual_seed(3)
    found = executor.run(work, probes)
    assert torch.equal(torch.rand(3), after)  # the global stream goes on alike
    assert (executor.left, any(p.at for p in probes)) == (left, False)
    assert all(p.grad is None and torch.equal(p, b) for p, b in zip(work.params, before, strict=True))
    assert_close(found, expected, 0 if left else 1e-10)
    assert_close(work.model.state_dict(), other.model.state_dict(), 1e-10)
    assert work.step.reached == (other.step.reached if left else [True] * len(work.params))
    return work


def mean(model: nn.Module, b: Any) -> Tensor:
    return loss_fn(model, b).mean()


def odd(model: Any, b: Any) -> Tensor:
    return loss_fn(model, b) + model(2 * b[0]).square().mean(1) + model.first(b[0]).sum(1) + model.last.weight.sum()


READINGS: list[Any] = [
    (loss_fn, two),
    (mean, two),
    (odd, two),
    (None, lambda work: two(work, loss_fn=mean)),
    (lambda m, b: odd(m, b["x"]), lambda work: [Probe({"x": batch(i), "none": [None]}) for i in range(2)]),
]


@pytest.mark.parametrize(("each", "ask"), READINGS)
def test_readings_are_those_of_local_in_memory_of_their_own(each: Any, ask: Any) -> None:
    work = compare(net, each, ask, micro_batch=8)
    tensors = [t for r in Batched().run(work, ask(work)) for t in (*r.grad, r.loss, r.losses) if t is not None]
    assert all(t.untyped_storage().nbytes() == t.nbytes and not t.requires_grad for t in tensors)


def test_tied_frozen_and_unused_parameters() -> None:
    compare(lambda: net(odd=True))
    expected, found = (trained(e, "sampa", net(odd=True)) for e in (Local(), Batched()))
    for name in ("unused.weight", "unused.bias"):  # counts as reached, with a gradient of zero: weight decay moves it
        assert not torch.equal(expected.pop(name), found.pop(name))
    assert_close(found, expected, 1e-10)


class Made(nn.Module):
    def __init__(self, run: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.run, self.parts = run, nn.ModuleDict(parts)
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


@pytest.mark.parametrize(("stats", "count"), [(None, 1), (True, 2), (False, 0)])
@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, None])
def test_running_statistics_are_those_of_local(momentum: Any, calls: int, stats: bool | None, count: int) -> None:
    def make() -> nn.Module:
        norm, idle = nn.BatchNorm1d(8, momentum=momentum), nn.BatchNorm1d(8, momentum=momentum)
        layers = nn.Sequential(nn.Linear(5, 8), *[norm, nn.Tanh()] * calls, nn.BatchNorm1d(8).eval(), nn.Linear(8, 3))
        return Made(lambda made, x: made.parts["layers"](x), layers=layers, idle=idle, norm=norm)

    norm: Any = compare(make, ask=lambda work: two(work, stats=stats)).model.parts["norm"]
    assert (int(norm.num_batches_tracked), bool(norm.running_mean.any())) == (count * calls, momentum != 0 < count)


def attending(kind: str, dropout: float = 0.0) -> nn.Module:
    def run(made: Any, x: Tensor) -> Tensor:
        x = x[:, :, None] * torch.linspace(0.5, 2.0, 4, dtype=x.dtype)  # (B, 5, 4)
        if kind == "layer":
            x = made.parts["layer"](x)
        elif kind == "multi":
            x = made.parts["multi"](x, x, x)[0]
        else:
            q, k, v = made.parts["first"](x).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
            x = attend(q, k, v, dropout_p=dropout, is_causal=kind == "causal").transpose(1, 2).flatten(2)
        return made.parts["last"](x.mean(1))

    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=dropout, batch_first=True)
    multi = nn.MultiheadAttention(4, 2, dropout, batch_first=True)
    return Made(run, layer=layer, multi=multi, first=nn.Linear(4, 12), last=nn.Linear(4, 3))


# Warnings are errors: attention that torch computed for one probe after the other would show.
@pytest.mark.parametrize("kind", ["layer", "multi", "plain", "causal"])
def test_attention(kind: str) -> None:
    compare(lambda: attending(kind))
    first, second = Batched().run(work_on(attending(kind, 0.5)), (Probe(batch(0)), Probe(batch(0))))
    assert not torch.allclose(first.losses, second.losses)


@pytest.mark.parametrize("make", [lambda: net(dropout=0.5), lambda: attending("plain", 0.5)])
def test_masks_differ_unless_they_are_shared(make: Any) -> None:
    def ask(work: Work) -> list[Any]:  # 2 at once, then 1
        return [r.losses for r in Batched().run(work, tuple(Probe(batch()) for _ in range(3)))]

    shared, work, before = ask(compare(make, rng="shared")), work_on(make()), torch.get_rng_state()
    free = ask(work) + ask(work)
    assert torch.equal(torch.get_rng_state(), before)  # nothing is taken from the global stream
    assert_close(shared, [shared[0]] * 3, 1e-12)
    assert not any(torch.allclose(a, b) for i, a in enumerate(free) for b in free[:i])


def test_autocast_around_is_autocast_inside() -> None:
    inside = torch.autocast("cpu", dtype=torch.bfloat16)(loss_fn)
    low, other = (trained(e, "sampa", net(dtype=torch.float32), 6, each=inside) for e in (Batched(), Local()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(trained(Batched(), "sampa", net(dtype=torch.float32), 6), low, 0)
    assert_close(low, other, 2e-2)  # numbers of 8 bits, rounded after sums in another order
    assert not torch.equal(low["losses"], trained(Batched(), "sampa", net(dtype=torch.float32), 6)["losses"])


def test_a_scaler_is_heeded_and_told_of_an_overflow_in_any_probe() -> None:
    assert bool(compare(net, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**12)).step.finite)
    work = work_on(net(dtype=torch.float32), scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
    probes = two(work)
    probes[1].batch[0].mul_(float("inf"))
    good, bad = (torch.stack([g.isfinite().all() for g in r.grad]) for r in Batched().run(work, probes))
    assert (bool(work.step.finite), bool(good.all()), bool(bad.any())) == (False, True, False)


def beside(second: Probe) -> dict[str, Any]:
    return {"ask": lambda work: (Probe(batch(0)), second)}


ONE_BY_ONE: dict[str, dict[str, Any]] = {
    "single": {"ask": lambda w: two(w)[1:]},
    "shape": beside(Probe(batch(1, size=7))),
    "type": beside(Probe((*batch(1)[:2], batch(1)[2].int()))),
    "structure": beside(Probe(list(batch(1)))),
    "loss": beside(Probe(batch(1), loss_fn=mean)),
    "no gradient": beside(Probe(batch(1), grad=False)),
    "wrt": beside(Probe(batch(1), wrt=[True, *[False] * 7])),
    "micro-batch": {"micro_batch": 3},
    "hook": {"ask": lambda w: w.params[0].register_hook(torch.neg) and two(w)},
    "late hook": {"ask": lambda w: w.params[0].register_post_accumulate_grad_hook(lambda _: None) and two(w)},
    "module hook": {"ask": lambda w: w.model.last.register_full_backward_hook(lambda *_: None) and two(w)},
    "norm": {"ask": lambda w: setattr(w.model.norm, "forward", w.model.norm.forward) or two(w)},
    "compiled": {"make": lambda: torch.compile(net(), backend="eager")},
}


@pytest.mark.parametrize("case", ONE_BY_ONE.values(), ids=ONE_BY_ONE)
def test_what_cannot_be_batched_is_answered_one_by_one(case: dict[str, Any]) -> None:
    compare(**{"make": lambda: net(norm=True), "left": 1, **case})


def test_passes_are_run_by_the_caller() -> None:
    work, found = work_on(net()), []
    for p in Batched().passes(work, two(work)):
        with p:
            p.backward(loss_fn(work.model, p.batch))
        found += [p.reading]
    assert_close(found, list(Local().run(work, two(work))), 0)


REFUSED: dict[str, tuple[Any, str]] = {
    "item": (lambda m, b: mean(m, b) * mean(m, b).item(), "vmap"),
    "if": (lambda m, b: mean(m, b) if mean(m, b) > 0 else -mean(m, b), "vmap"),
    "mask": (lambda m, b: loss_fn(m, b)[loss_fn(m, b) > 0].mean(), "vmap"),
    "numpy": (lambda m, b: mean(m, b) * float(mean(m, b).detach().numpy()), "vmap"),
    "checkpoint": (lambda m, b: checkpoint(m, b[0], use_reentrant=False).mean(), "vmap"),
    "in place": (lambda m, b: loss_fn(m, b) + m.count.add_(1), "changes count"),
    "anew": (lambda m, b: setattr(m, "count", m.count + b[0].mean()) or loss_fn(m, b), "changes count"),
    "kept": (lambda m, b: loss_fn(m, b) + m.kept[0].square().sum(), "take parameters from the model"),
}


@pytest.mark.parametrize(("each", "says"), REFUSED.values(), ids=REFUSED)
def test_what_vmap_cannot_do_is_refused_and_the_remedy_works(each: Any, says: str) -> None:
    model: Any = Made(lambda m, x: m.parts["last"](x), last=nn.Linear(5, 3))
    model.kept, buffer, work = [model.parts["last"].weight], model.count, work_on(model, each)
    with pytest.raises(UsageError, match=rf"{says}.*use executor=Local\(\)") as info:
        Batched().run(work, two(work))
    assert isinstance(info.value.__cause__, RuntimeError) == (says == "vmap")
    assert (model.count is buffer, *[p.grad for p in model.parameters()]) == (True, None, None)
    assert Local().run(work, two(work))[0].grad is not None


@pytest.mark.parametrize("error", [TripError(), KeyboardInterrupt(), RuntimeError("mat1 and mat2")], ids=repr)
def test_what_is_raised_inside_leaves_all_as_it_was(error: BaseException) -> None:
    engine = lowland.Engine(lowland.SAMPa(), model := net(norm=True), sgd(model), loss_fn, executor=Batched())
    engine.backward(batch(0))
    before, memory = {k: v.clone() for k, v in model.state_dict().items()}, dict(engine.memory)
    kept = [(p, p.grad) for p in model.parameters()]
    hook = model.last.register_forward_hook(Mock(side_effect=error))  # after BatchNorm
    with pytest.raises(type(error)) as info:
        engine.backward(batch(1))
    assert type(error) is not RuntimeError or "Batched ran loss_fn" in error.__notes__[0]
    assert_close(dict(model.state_dict()), before, 0)
    assert all(a is b and a.grad is grad for a, (b, grad) in zip(model.parameters(), kept, strict=True))
    assert (info.value, engine.step, engine.memory) == (error, 1, memory)
    hook.remove()
    engine.backward(batch(1))


def test_mistakes_are_told_as_by_local() -> None:
    told: list[str] = []
    for executor in (Batched(), Local()):
        for each in (lambda m, b: m(b[0]), lambda m, b: m(b[0]).detach().mean(), loss_fn):
            work = work_on(net(), each)
            with pytest.raises(UsageError if each is loss_fn else LossError) as info:
                executor.run(work, two(work)[1:] * 2 if each is loss_fn else two(work))  # a probe is asked once
            told.append(str(info.value))
    assert told[:3] == told[3:]
    with pytest.raises(ArgumentError, match=r"width must be an integer >= 1, but is 0; 1 answers one"):
        Batched(0)


@pytest.mark.parametrize(
    "each",
    [
        mean,
        lambda m, b: mean(m, b).expand(len(b[0])),
        lambda m, b: mean(m, b).repeat(len(b[0])),
        lambda m, b: mean(m, b).repeat(len(b[0])) / 1.5,
        lambda m, b: mean(m, b).expand(len(b[0])).clone() * torch.tensor(2.0),
    ],
)
def test_a_mean_of_a_part_has_no_weight(each: Any) -> None:
    for executor in (Local(), Batched(4)):
        engine = lowland.Engine(lowland.MicroSAM(), model := net(), sgd(model), each, executor=executor)
        with pytest.raises(LossError, match="loss_fn must return what a part of a batch weighs"):
            engine.backward(batch(0, 16))


@pytest.mark.parametrize(
    "each",
    [
        lambda m, b: loss_fn(m, b) * mean(m, b),
        lambda m, b: mean(m, b).repeat(4) * torch.arange(1.0, 5.0),
        lambda m, b: torch.arange(1.0, 5.0) / mean(m, b).expand(4),
        lambda m, b: (mean(m, b).expand(2, 4) * torch.arange(1.0, 5.0)).sum(0),
    ],
)
def test_losses_by_example_of_which_a_mean_is_a_factor(each: Any) -> None:
    found = []
    for executor in (Local(), Batched(4)):  # as many probes as examples
        engine = lowland.Engine(lowland.MicroSAM(), model := net(), sgd(model), each, executor=executor)
        found.append([engine.backward(batch(0, 16)), *(p.grad for p in engine.params)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of embedding_renorm_ under vmap
def test_weights_that_forward_writes_are_refused() -> None:
    def make() -> nn.Module:
        table = nn.Embedding(7, 3, max_norm=0.5)
        return Made(lambda made, x: made.parts["table"](x.abs().mul(3).long().clamp_max(6)).mean(1), table=table)

    work = work_on(make(), lambda m, b: m(b[0]).square().mean(1))
    before = work.params[0].detach().clone()
    assert float(before.norm(dim=1).max()) > 0.5
    with pytest.raises(UsageError, match=r"must not write weights under Batched.*use executor=Local\(\)"):
        Batched().run(work, (Probe(batch(0, 6)), Probe(batch(1, 6))))
    assert torch.equal(work.params[0], before)


@pytest.mark.parametrize("write", [lambda w: w.mul_(0.5), lambda w: w.data.mul_(0.5), lambda w: w.copy_(w + 1)])
def test_a_loss_cannot_write_the_weights_that_probes_share(write: Any) -> None:
    def each(model: Any, b: Any) -> Tensor:
        with torch.no_grad():
            write(model.last.weight)
        return loss_fn(model, b)

    work = work_on(net(), each)
    before = [p.detach().clone() for p in work.params]
    with pytest.raises(UsageError, match=r"(not write weights|accessing `data` under vmap).*use executor=Local\(\)"):
        Batched().run(work, (Probe(batch(0)), Probe(batch(1))))
    assert all(torch.equal(p, b) for p, b in zip(work.params, before, strict=True))


def test_nothing_waits_for_the_device() -> None:
    with FakeTensorMode():  # .item() and bool() raise
        model, executor = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), Watched()
        engine = lowland.Engine(lowland.SAMPa(), model, sgd(model), loss_fn, executor=executor)
        engine.backward((torch.zeros(8, 5), torch.zeros(8, dtype=torch.long)))
    assert (executor.left, executor.asked, engine.cost.sequential) == (0, 1, 1)
