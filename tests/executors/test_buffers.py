"""Tensors that forward or the loss writes: once per step, by the pass that reports, and by hand the same numbers."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations, spectral_norm

import lowland
from lowland.errors import UsageError
from lowland.executors import buffers
from lowland.methods import SAM, LookSAM, MicroSAM, SAMPa

EXACT = {"rtol": 1e-9, "atol": 1e-11}  # float64; SAM adds 1e-12 to the norm


class Ring(nn.Module):
    """A queue of the last examples, whose mean is part of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(16, 5))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            places = (self.pointer + torch.arange(len(x))) % 16
            self.queue[places] = x.detach()
            self.pointer += len(x)
        return x + self.queue.mean(0)


class HandNorm(nn.Module):
    """Running statistics as people write them: the buffer is bound anew."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


class Attribute(nn.Module):
    """A tensor in an attribute that is no buffer, first None."""

    def __init__(self) -> None:
        super().__init__()
        self.center = None

    def forward(self, x: Tensor) -> Tensor:
        now = x.detach().mean(0)
        self.center = now if self.center is None else 0.5 * self.center + 0.5 * now
        return x - self.center


class Made(nn.Module):
    """A tensor in an attribute that the first forward makes."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "center"):
            self.center = torch.zeros(5)
        self.center = 0.5 * self.center + 0.5 * x.detach().mean(0)
        return x - self.center


class LateBuffer(nn.Module):
    """A buffer that is None until the first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.center is None:
            self.center = torch.zeros(5)
        self.center.mul_(0.5).add_(x.detach().mean(0))
        return x - self.center


class Synced(_BatchNorm):
    """A subclass of BatchNorm with a forward of its own."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.0


class Instance(nn.InstanceNorm1d):
    """InstanceNorm whose running statistics are read, too."""

    def forward(self, x: Tensor) -> Tensor:
        return (
            super().forward(x.reshape(len(x), 5, 1).expand(-1, -1, 3) * torch.arange(3.0)).mean(2) + self.running_mean
        )


class Cell(nn.Module):
    """State in a list's stead: a plain tensor written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.zeros(5)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.detach().sum(0)
        return x + 0.1 * self.seen


class Functional(nn.Module):
    """``batch_norm`` of torch writes statistics without a new version."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("var", torch.ones(5))
        self.register_buffer("mask", torch.ones(1).expand(5))  # cannot be written in place

    def forward(self, x: Tensor) -> Tensor:
        out = nn.functional.batch_norm(x, self.mean, self.var, training=True) * self.mask
        return out + nn.functional.batch_norm(x, self.mean, self.var)


def around(make):
    return lambda: nn.Sequential(nn.Linear(5, 5), make(), nn.Tanh(), nn.Linear(5, 1))


MODELS = {
    "spectral": lambda: nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(5, 6)), nn.Tanh(), parametrizations.spectral_norm(nn.Linear(6, 1))
    ),
    "spectral hook": lambda: nn.Sequential(spectral_norm(nn.Linear(5, 6)), nn.Tanh(), spectral_norm(nn.Linear(6, 1))),
    "ring": around(Ring),
    "by hand": around(HandNorm),
    "attribute": around(Attribute),
    "made": around(Made),
    "late buffer": around(LateBuffer),
    "in place": around(Cell),
    "instance": around(lambda: Instance(5, track_running_stats=True, affine=True)),
    "synced": around(lambda: Synced(5)),
    "functional": around(Functional),
    "batch norm": around(lambda: nn.BatchNorm1d(5)),
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def made(make):
    torch.manual_seed(3)
    return make()


def data(step: int = 0, size: int = 8) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(step)
    return torch.randn(size, 5, generator=g), torch.randn(size, 1, generator=g)


def loss_fn(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(1)


def state(*modules) -> list:
    """All buffers and tensors in attributes, copied."""
    found = []
    for m in [part for module in modules for part in module.modules()]:
        for owner in (m._buffers, vars(m)):
            for key, value in list(owner.items()):
                if (isinstance(value, Tensor) or value is None) and not (value is None and key.startswith("_")):
                    found.append((owner, key, None if value is None else value.detach().clone()))
    return found


def put(saved: list) -> None:
    for owner, key, value in saved:
        owner[key] = None if value is None else value.clone()


def grad_of(params, loss) -> list[Tensor]:
    return list(torch.autograd.grad(loss.mean(), params))


def sam_by_hand(model, batch, rho: float, loss=loss_fn, *others) -> list[Tensor]:
    """SAM's gradient; both passes start from the state as it is, and the first one's update stays."""
    params = list(model.parameters())
    start = state(model, *others)
    first = grad_of(params, loss(model, batch))
    after = state(model, *others)
    there = {(id(owner), key) for owner, key, _ in start}
    for owner, key, _ in after:
        if (id(owner), key) not in there:
            del owner[key]
    put(start)
    norm = torch.cat([g.flatten() for g in first]).norm()
    kept = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, g in zip(params, first, strict=True):
            p += rho * g / norm
    second = grad_of(params, loss(model, batch))
    with torch.no_grad():
        for p, k in zip(params, kept, strict=True):
            p.copy_(k)
    put(after)
    return second


def engine_for(model, method, loss=loss_fn, lr: float = 0.1, **options):
    return lowland.Engine(method, model, torch.optim.SGD(model.parameters(), lr=lr), loss, **options)


def step(engine, batch) -> None:
    engine.optimizer.zero_grad()
    engine.backward(batch)
    engine.optimizer.step()


def alike(a, b) -> None:
    for (_, key, x), (_, other, y) in zip(a, b, strict=True):
        assert key == other
        assert (x is None) == (y is None), key
        if x is not None:
            torch.testing.assert_close(x, y, **EXACT)


@every_model
@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_sam_is_that_by_hand_and_state_is_written_once(make, rho):
    model, twin = made(make), made(make)
    engine = engine_for(model, SAM(rho=rho))
    for i in range(4):
        expected = sam_by_hand(twin, data(i), rho)
        engine.optimizer.zero_grad()
        engine.backward(data(i))
        for p, g in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, g, **EXACT)
        alike(state(model), state(twin))
        engine.optimizer.step()
        with torch.no_grad():
            for p, g in zip(twin.parameters(), expected, strict=True):
                p -= 0.1 * g


@every_model
def test_at_radius_0_it_is_the_base_run(make):
    model, twin = made(make), made(make)
    engine, base = engine_for(model, SAM(rho=0)), torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(5):
        step(engine, data())
        base.zero_grad()
        loss_fn(twin, data()).mean().backward()
        base.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, **EXACT)
    alike(state(model), state(twin))


@every_model
def test_one_update_per_step_where_weights_stay(make):
    model, twin = made(make), made(make)
    engine = engine_for(model, SAM(rho=0.5), lr=0.0)
    for i in range(3):
        step(engine, data(i))
        loss_fn(twin, data(i))
    alike(state(model), state(twin))


def test_a_pointer_moves_by_the_batch():
    for method in (SAM(rho=0.5), LookSAM(rho=0.5, k=2), SAMPa(rho=0.5), MicroSAM(rho=0.5, m=2)):
        model = made(around(Ring))
        engine = engine_for(model, method)
        step(engine, data(size=4))
        assert int(model[1].pointer) == 4, method
        step(engine, data(1, size=4))
        assert int(model[1].pointer) == 8, method


class Criterion(nn.Module):
    """A loss with a running scale."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, out: Tensor, target: Tensor) -> Tensor:
        losses = (out - target).square().mean(1)
        with torch.no_grad():
            self.calls += 1
            self.scale.mul_(0.9).add_(0.1 * losses.mean())
        return losses / self.scale


class Task:
    def __init__(self, criterion) -> None:
        self.criterion = criterion

    def loss(self, model, batch):
        return self.criterion(model(batch[0]), batch[1])

    __call__ = loss


class Slotted:
    __slots__ = ("criterion",)

    def __init__(self, criterion) -> None:
        self.criterion = criterion

    def __call__(self, model, batch):
        return self.criterion(model(batch[0]), batch[1])


GLOBAL: dict = {}


def with_global(model, batch):
    return GLOBAL["criterion"](model(batch[0]), batch[1])


def given(criterion, model, batch):
    return criterion(model(batch[0]), batch[1])


def by_default(criterion):
    def loss(model, batch, criterion=criterion):
        return criterion(model(batch[0]), batch[1])

    return loss


def nested(criterion):
    inner = functools.wraps(loss_fn)(lambda out, y: criterion(out, y))
    return lambda model, batch: inner(model(batch[0]), batch[1])


def in_class(criterion):
    class Task2:
        crit = criterion

        @classmethod
        def loss(cls, model, batch):
            return cls.crit(model(batch[0]), batch[1])

    return Task2.loss


class Weighted:
    """A loss object that is no module, with tensors in attributes and in a dictionary."""

    def __init__(self) -> None:
        self.scale, self.counts = torch.ones(()), {"calls": torch.zeros(())}

    def __call__(self, model, batch):
        losses = (model(batch[0]) - batch[1]).square().mean(1)
        self.counts["calls"] += 1
        self.scale = 0.9 * self.scale + 0.1 * losses.detach().mean()
        return losses / self.scale


def test_a_loss_object_that_is_no_module_is_written_once():
    model, loss, base = made(MODELS["batch norm"]), Weighted(), Weighted()
    engine = engine_for(model, SAM(rho=0.5), loss, lr=0.0)
    for i in range(3):
        step(engine, data(i))
        base(model, data(i))
    assert int(loss.counts["calls"]) == 3
    torch.testing.assert_close(loss.scale, base.scale, **EXACT)


WAYS = {
    "closure": lambda c: lambda m, b: c(m(b[0]), b[1]),
    "global": lambda c: (GLOBAL.update(criterion=c), with_global)[1],
    "partial": lambda c: functools.partial(given, c),
    "method": lambda c: Task(c).loss,
    "object": Task,
    "slots": Slotted,
    "default": by_default,
    "nested": nested,
    "in a list": lambda c: (lambda parts: lambda m, b: parts[0]["x"](m(b[0]), b[1]))([{"x": c}]),
    "class attribute": in_class,
    "the module's forward": lambda c: (lambda f: lambda m, b: f(m(b[0]), b[1]))(c.forward),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_criterion_is_written_once_wherever_the_loss_has_it(way):
    model, twin, criterion, other = made(MODELS["batch norm"]), made(MODELS["batch norm"]), Criterion(), Criterion()
    engine = engine_for(model, SAM(rho=0.5), way(criterion))
    for i in range(3):
        expected = sam_by_hand(twin, data(i), 0.5, Task(other), other)
        engine.optimizer.zero_grad()
        engine.backward(data(i))
        for p, g in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, g, **EXACT)
    assert int(criterion.calls) == 3
    torch.testing.assert_close(criterion.scale, other.scale, **EXACT)


class TripError(Exception):
    pass


@pytest.mark.parametrize("nth", [1, 2])
@every_model
def test_an_exception_in_a_displaced_pass_leaves_no_trace_of_it(make, nth):
    model, twin, calls = made(make), made(make), []

    def trips(m, batch):
        out = loss_fn(m, batch)
        calls.append(1)
        if len(calls) == 2:
            raise TripError
        return out

    engine = engine_for(model, SAM(rho=0.5) if nth == 2 else SAMPa(rho=0.5), trips)
    with pytest.raises(TripError):
        engine.backward(data())
    assert all(p.grad is None for p in model.parameters())
    del calls[:]
    calls += [1, 1]
    loss_fn(twin, data())  # what passes that report have written stays, as after loss.backward()
    if nth == 2:
        alike(state(model), state(twin))


class Big(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.big = torch.zeros(buffers.SMALL + 1)
        self.late = False

    def forward(self, x: Tensor) -> Tensor:
        if self.late:
            self.big += 1
        return x + self.big[0]


def test_a_big_tensor_first_written_late_by_a_pass_that_does_not_report_is_refused_once():
    model = made(around(Big))
    engine = engine_for(model, SAM(rho=0.5), lr=0.0)
    for _ in range(3):
        step(engine, data())
    model[1].late = True
    before, number = [p.detach().clone() for p in model.parameters()], engine.step
    with pytest.raises(UsageError, match=r"1\.big was written for the first time"):
        engine.backward(data())
    assert engine.step == number
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    value = float(model[1].big[0])
    step(engine, data())
    assert float(model[1].big[0]) == value + 1


def test_passes_run_by_the_caller_write_once():
    model, twin = made(around(Ring)), made(around(Ring))
    engine = engine_for(model, SAM(rho=0.5), None)
    for i in range(3):
        expected = sam_by_hand(twin, data(i), 0.5)
        engine.optimizer.zero_grad()
        for p in engine.passes(data(i)):
            with p:
                p.backward(loss_fn(model, p.batch))
        for p, g in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, g, **EXACT)
        alike(state(model), state(twin))


def test_a_closure_optimizer_writes_once():
    model = made(around(Ring))
    optimizer = lowland.ClosureOptimizer(engine_for(model, SAM(rho=0.5), None))

    def closure():
        optimizer.zero_grad()
        loss = loss_fn(model, data()).mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert int(model[1].pointer) == 24


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if not lowland.displaced():
            self.calls += 1
        return x


@pytest.mark.parametrize("method", [SAM(rho=0.5), SAMPa(rho=0.5), LookSAM(rho=0.5, k=2)], ids=lambda m: m.kind)
def test_displaced_says_which_pass_may_count(method):
    model = made(around(Counting))
    engine = engine_for(model, method)
    for _ in range(3):
        step(engine, data())
    assert model[1].calls == 3
    assert not lowland.displaced()


def test_micro_batches_write_as_often_as_those_of_the_base_run():
    model, twin = made(around(Ring)), made(around(Ring))
    engine = engine_for(model, SAM(rho=0.5), lr=0.0, micro_batch=4)
    for i in range(2):
        step(engine, data(i))
        for part in (slice(0, 4), slice(4, 8)):
            loss_fn(twin, tuple(t[part] for t in data(i)))
    alike(state(model), state(twin))


@pytest.mark.parametrize("key", ["spectral", "ring", "by hand", "batch norm"])
def test_compiled_models_are_as_they_are_without(key):
    def trained(compiled: bool):
        model = made(MODELS[key])
        engine = engine_for(torch.compile(model, backend="aot_eager") if compiled else model, SAM(rho=0.5))
        for i in range(3):
            step(engine, data(i))
        return list(model.state_dict().values())

    for a, b in zip(trained(True), trained(False), strict=True):
        torch.testing.assert_close(a, b, **EXACT)


# Several ranks


def spectral_on_ranks(kind: str):
    torch.set_default_dtype(torch.float64)
    try:
        rank = dist.get_rank()
        model = made(around(Ring) if kind == "probe" else MODELS["spectral"])
        if kind == "probe":
            mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("probe",))
            engine = engine_for(model, MicroSAM(rho=0.5, m=2), mesh=mesh)
            try:
                for i in range(2):
                    step(engine, data(i))
            except UsageError as error:
                return str(error)
            return "accepted"
        ddp = nn.parallel.DistributedDataParallel(model, broadcast_buffers=True)
        engine = engine_for(ddp, SAM(rho=0.5))
        for i in range(3):
            step(engine, tuple(t[4 * rank : 4 * rank + 4] for t in data(i)))
        return [t.detach().clone() for t in model.state_dict().values()]
    finally:
        torch.set_default_dtype(torch.float32)


def test_ddp_writes_once_and_ranks_agree():
    found = on_ranks(2, spectral_on_ranks, "ddp")
    twin = made(MODELS["spectral"])
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for i in range(3):
        for p, g in zip(twin.parameters(), sam_by_hand(twin, data(i), 0.5), strict=True):
            p.grad = g
        optimizer.step()
    for ours, theirs, expected in zip(*found, twin.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
        torch.testing.assert_close(ours, expected.detach(), **EXACT)


def test_a_probe_mesh_refuses_what_forward_writes_by_name():
    for answer in on_ranks(2, spectral_on_ranks, "probe"):
        assert "1.queue" in answer or "1.pointer" in answer
