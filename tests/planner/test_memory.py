from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from lowland.lab.training import rehearsal
from lowland.planner import memory
from lowland.planner.memory import LiveTensors


def test_peak_and_what_is_left():
    with LiveTensors() as meter:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b.view(10, 100)  # shares its memory
        b.add_(1)
        d = [c * 2 for _ in range(3)]
        del d
    assert meter.live == 4000
    assert meter.peak == 4000 + 3 * 4000


def test_what_was_there_before_does_not_count():
    weight = torch.nn.Parameter(torch.zeros(100, 100))
    x = torch.ones(3, 100)
    with LiveTensors() as meter:
        loss = torch.nn.functional.linear(x, weight).sum()  # through a view of the weight
        assert meter.peak <= 4 * (3 * 100 + 1)
        loss.backward()
    assert meter.peak < 4 * (100 * 100 + 2000)


def test_backward_and_optimizer_are_seen():
    n = 4 * 100 * 100
    with LiveTensors() as meter:
        weight = torch.nn.Parameter(torch.zeros(100, 100))
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        (weight.square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert meter.live - 2 * n < 100  # weight and momentum; scalars besides
    assert 3 * n <= meter.peak < 5 * n


def test_bits_are_the_same():
    def work():
        torch.manual_seed(0)
        layer = torch.nn.Linear(20, 20)
        layer(torch.randn(8, 20)).square().sum().backward()
        return layer.weight.grad

    with LiveTensors():
        measured = work()
    assert torch.equal(measured, work())


def test_other_tensors_do_not_count():
    outside = torch.zeros(1000)
    with LiveTensors() as meter:
        del outside
        torch.zeros(10)
    assert meter.live == 0
    assert meter.peak == 40


class Allocator:
    """Stands for the functions of torch.cuda about memory; it notes what is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        for name, value in {
            "empty_cache": None,
            "reset_peak_memory_stats": None,
            "memory_allocated": 100,
            "max_memory_allocated": 350,
            "max_memory_reserved": 400,
        }.items():
            monkeypatch.setattr(torch.cuda, name, lambda *device, n=name, v=value: self.log.append(n) or v)


def test_cuda_s_peak_is_above_what_was_there(monkeypatch):
    allocator = Allocator(monkeypatch)
    with memory.meter(torch.device("cuda:1")) as meter:
        allocator.log.append("work")
    assert meter.peak == 250
    start = ["empty_cache", "reset_peak_memory_stats", "memory_allocated"]  # so that reserved memory is this run's
    assert allocator.log == [*start, "work", "max_memory_allocated"]


def test_reserved_memory_is_cuda_s_alone(monkeypatch):
    Allocator(monkeypatch)
    assert memory.reserved(torch.device("cuda:1")) == {"reserved_memory": 400}
    assert memory.reserved(torch.device("cpu")) == {}


@pytest.mark.parametrize("device", ["cuda:1", "cpu"])
def test_a_gpu_is_warm_before_its_memory_is_measured(device, monkeypatch):
    """Otherwise the first run of a process would have the memory that cuBLAS and cuDNN keep."""
    log, forked = [], []

    class Stub:
        def __init__(self) -> None:
            log.append("trainer")

        def step(self, batch: int, progress: float) -> None:
            log.append(f"step {batch}")

    @contextmanager
    def meter(device: torch.device) -> Iterator[SimpleNamespace]:
        log.append("measure")
        yield SimpleNamespace(peak=7)
        log.append("done")

    monkeypatch.setattr(rehearsal, "meter", meter)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: forked.append(devices) or nullcontext())
    loader = SimpleNamespace(device=torch.device(device), batches=lambda epoch: [0, 1])
    assert rehearsal.rehearse(Stub, loader, steps=3) == 7
    measured = ["measure", "trainer", "step 0", "step 1", "step 0", "done"]
    assert log == (["trainer", "step 0", *measured] if device != "cpu" else measured)
    assert forked == [[torch.device(device)] if device != "cpu" else []]
