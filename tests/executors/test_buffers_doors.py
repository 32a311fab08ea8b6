"""State that forward writes: exceptions, large tensors, doors, compiled models and ranks."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from written import (
    EXACT,
    MODELS,
    Ring,
    alike,
    around,
    data,
    engine_for,
    every_model,
    loss_fn,
    made,
    sam_by_hand,
    state,
    step,
)

import lowland
from lowland import SAM, LookSAM, MicroSAM, SAMPa
from lowland.core.errors import UsageError
from lowland.executors import buffers


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


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


class Numbered(nn.Module):
    """Numbers of Python that every forward pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls, self.scale = nn.Linear(4, 3), 0, 1.0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.scale *= 0.5
        return self.layer(x) * self.scale


def numbers_on_ranks(kind: str) -> object:
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        model = Numbered()
        method = SAM() if kind == "sam" else SAMPa()
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("replicate" if kind == "replicate" else "probe",))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        engine = lowland.Engine(method, model, optimizer, lambda m, b: m(b).square().mean(1), mesh=mesh)
        try:
            for _ in range(4):
                engine.backward(torch.ones(2, 4))
        except UsageError as error:
            return str(error)
        return model.calls, model.scale
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", ["sam", "replicate"])
def test_numbers_change_once_per_step_on_ranks_that_run_all_passes(kind):
    assert on_ranks(2, numbers_on_ranks, kind) == [(4, 0.5**4)] * 2


def test_numbers_that_would_go_apart_on_a_probe_mesh_are_refused():
    for answer in on_ranks(2, numbers_on_ranks, "sampa"):
        assert "the groups would drift apart, but writes calls, scale; use data parallelism" in answer
