"""The time of steps."""

from __future__ import annotations

import pytest
import torch

from lowland.lab.training.clock import Clock
from lowland.planner.typical import typical


def test_only_steps_count(monkeypatch):
    times = iter([0.0, 1.0, 10.0, 12.0, 15.0])
    monkeypatch.setattr("lowland.lab.training.clock.time.perf_counter", lambda: next(times))
    clock = Clock(torch.device("cpu"))
    clock.start()
    clock.lap()
    clock.start()  # an evaluation took from 1 to 10
    clock.lap()
    clock.lap()
    assert clock.laps == [1.0, 2.0, 3.0]
    assert clock.seconds == 6.0


def test_typical_keeps_the_costly_steps_of_a_cycle():
    laps = [2.0, 1.0, 1.0, 1.0, 1.0] * 4
    gradients = [2, 1, 1, 1, 1] * 4
    assert typical(laps, gradients) == pytest.approx(1.2)
    laps[3] = 100.0  # somebody else used the machine
    assert typical(laps, gradients) == pytest.approx(1.2)


def test_no_steps_have_no_typical_time():
    assert typical([], []) is None


class Gpu:
    """Stands for torch.cuda: events are at the times that a GPU reaches them, and what the host does is noted."""

    def __init__(self, times: list[float]) -> None:
        self.times, self.log = iter(times), []
        self.Event = self.made

    def current_stream(self, device: torch.device) -> str:
        return f"the stream of {device}"

    def made(self, enable_timing: bool = False) -> Gpu.Made:
        assert enable_timing
        return Gpu.Made(self, next(self.times))

    class Made:
        def __init__(self, gpu: Gpu, at: float) -> None:
            self.gpu, self.at = gpu, at

        def record(self, stream: str) -> None:
            self.gpu.log.append(f"event at {self.at} in {stream}")

        def synchronize(self) -> None:
            self.gpu.log.append(f"wait until {self.at}")

        def elapsed_time(self, end: Gpu.Made) -> float:
            return (end.at - self.at) * 1e3  # milliseconds


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_a_gpu_s_step_is_read_when_the_next_one_is_queued(kind, monkeypatch):
    gpu = Gpu([0.0, 1.0, 10.0, 12.0, 15.0])
    monkeypatch.setattr(torch, kind, gpu)
    monkeypatch.setattr("lowland.lab.training.clock.time", None)  # the host's time says nothing
    clock = Clock(torch.device(kind, 1))
    clock.start()
    clock.lap()
    assert clock.laps == []
    clock.start()  # an evaluation took from 1 to 10
    clock.lap()
    assert clock.laps == [1.0]
    clock.lap()
    assert clock.laps == [1.0, 2.0]
    assert clock.seconds == 3.0
    waits = [entry for entry in gpu.log if "wait" in entry]
    assert waits == ["wait until 1.0", "wait until 12.0"]  # each time for the step before the last one
    assert gpu.log.index("wait until 1.0") > gpu.log.index(f"event at 12.0 in the stream of {kind}:1")
    assert clock.settle() == 6.0
    assert clock.laps == [1.0, 2.0, 3.0]
    assert clock.settle() == 6.0


def test_a_cpu_s_clock_has_nothing_to_settle():
    clock = Clock(torch.device("cpu"))
    clock.start()
    clock.lap()
    assert clock.settle() == clock.seconds == clock.laps[0]
