"""What groups of a mesh exchange does not wait for the GPU; "meta" stands for it, and a mock for the other rank."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from waiting import NoWaiting

from lowland.core.batch import Batches
from lowland.core.probe import Probe, Reading
from lowland.executors import modes
from lowland.executors.mesh import exchange as exchange_module
from lowland.executors.mesh import mesh as module
from lowland.executors.mesh import messages
from lowland.executors.mesh.exchange import Exchange
from lowland.executors.mesh.mesh import Mesh
from lowland.executors.mesh.messages import Messages

GROUP: Any = "two ranks"


@pytest.fixture(autouse=True)
def _two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    monkeypatch.setattr(dist, "get_rank", lambda group: 0)


def gathered(batch: Any, device: str, divisor: Any, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """What rank 0 sends beside its gradient."""
    sent: list[Tensor] = []
    monkeypatch.setattr(module, "all_gather", lambda everyone, mine, group: sent.append(mine))
    mesh = Mesh(GROUP)
    nothing = SimpleNamespace(given=1, taken=0, give=lambda *_: None, wait=lambda *_: None, check=lambda *_: None)
    nothing.take = lambda grads, count: [grads, grads]
    mesh._exchange = nothing  # type: ignore[assignment]
    step = SimpleNamespace(finite=None, reached=[True])
    work: Any = SimpleNamespace(batches=Batches(), step=step, params=[torch.zeros(3, device=device)])
    statistics: Any = SimpleNamespace(
        contribution=lambda rank: torch.zeros(0, dtype=torch.float64, device=device), combine=lambda *_: None
    )
    loss = torch.ones((), device=device)
    own = Reading(loss, [torch.ones(3, device=device)], torch.ones(4, device=device), divisor)
    mesh.begin(batch)
    mesh._gather(work, (Probe(batch), Probe(batch)), own, statistics)
    return sent[0]


HERE = (torch.arange(12.0).reshape(4, 3), torch.arange(4))
DIVISORS = {"number": 4.0, "int": 4, "mean": None}


@pytest.mark.parametrize("divisor", [*DIVISORS.values(), "tensor"], ids=[*DIVISORS, "tensor"])
@pytest.mark.parametrize("place", ["host", "device", "both"])
def test_nothing_waits_for_the_gpu(place: str, divisor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tuple(t.to("meta") for t in HERE)
    batch = {"host": HERE, "device": there, "both": (there[0], HERE[1])}[place]
    divisor = torch.full((), 4.0, dtype=torch.float64, device="meta") if divisor == "tensor" else divisor
    with NoWaiting() as guard:
        gathered(batch, "meta", divisor, monkeypatch)
    assert guard.copies == (place != "device")  # one number, whatever the host's part of the batch


@pytest.mark.parametrize(("divisor", "expected"), [(4.0, 4.0), (None, 0.0), (torch.tensor(2.0).double(), 2.0)])
def test_what_is_sent(divisor: Any, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = gathered(HERE, "cpu", divisor, monkeypatch)
    assert sent[2].item() == sum(range(12)) + sum(range(4))
    assert sent[6].item() == expected


def test_a_batch_without_tensors_has_no_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Mesh(GROUP)
    mesh.begin(None)
    assert mesh._sum(torch.device("cpu")).item() == 0.0
    mesh.begin((torch.ones(2, dtype=torch.complex64),))
    assert mesh._sum(torch.device("cpu")).item() == 0.0


@pytest.mark.parametrize(("device", "size"), [("cpu", 1 << 20), ("cuda:1", 25 << 20), ("xpu", 25 << 20)])
def test_buckets_are_larger_on_a_gpu(device: str, size: int) -> None:
    assert messages.default_bucket(torch.device(device)) == size


def test_a_bucket_s_size_by_device_and_by_argument() -> None:
    layers = [torch.zeros(1 << 18) for _ in range(60)]  # 1 MiB each
    far = [t.to("meta") for t in layers]
    assert len(Messages(layers, GROUP)._buckets) == 60
    assert len(Messages(far, GROUP)._buckets) == 3
    assert len(Messages(far, GROUP, bucket=10 << 20)._buckets) == 6
    assert len(Messages(far, GROUP, bucket=0)._buckets) == 60


@pytest.mark.parametrize(("device", "known"), [("cpu", True), ("cuda:0", False)])
def test_the_host_does_not_know_how_long_a_gpu_waits(device: str, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    times, waits = iter([1.0, 4.0]), []
    monkeypatch.setattr(exchange_module.time, "perf_counter", lambda: next(times))
    param: Any = SimpleNamespace(device=torch.device(device))
    exchange = type("Some", (Exchange,), {"give": None, "buckets": None})([param], GROUP)
    exchange.wait([SimpleNamespace(wait=lambda: waits.append(1)) for _ in range(2)])
    assert waits == [1, 1]
    assert exchange.waited == 3.0 if known else math.isnan(exchange.waited)


@pytest.mark.parametrize("compiled", [False, True])
def test_nothing_is_sent_during_a_compiled_backward(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled autograd traces the hooks that send gradients early."""
    monkeypatch.setitem(
        sys.modules, "torch._dynamo.compiled_autograd", SimpleNamespace(compiled_autograd_enabled=compiled)
    )
    log: list[str] = []
    mesh = Mesh(GROUP)
    exchange: Any = SimpleNamespace(arm=lambda scale, count: log.append("arm"), disarm=lambda: log.append("disarm"))
    mesh._exchange = exchange
    alone = SimpleNamespace(ddps=[], sharded=False, own=[], norms=[])
    work: Any = SimpleNamespace(
        params=[torch.zeros(3)],
        device=torch.device("cpu"),
        replicas=alone,
        batches=Batches(),
        micro_batch=None,
        buffers=SimpleNamespace(written=[], numbers=[]),
        scale=lambda: None,
    )
    with mesh._shared(work, (Probe(torch.ones(4)),), [], early=True):
        log.append("pass")
    assert log == (["pass", "disarm"] if compiled else ["arm", "pass", "disarm"])


def test_compiled_autograd_is_seen() -> None:
    compiled_autograd = pytest.importorskip("torch._dynamo.compiled_autograd")
    assert not modes.compiled_backward()
    with compiled_autograd._enable(lambda graph: graph):
        assert modes.compiled_backward()
    assert not modes.compiled_backward()
