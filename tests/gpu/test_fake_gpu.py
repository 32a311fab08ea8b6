"""Sections that need a GPU, on a fake one that is this CPU: their code runs, and what they must notice they notice."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from functools import partial

import pytest
import replayed
import torch
from conformance import TEXTS

from gpu import ahead, dist, executors, graphs, launches, memory, streams, syncs, timing
from gpu.training import largest_difference
from lowland.executors.ownership import Ownership


class Event:
    """An event of a GPU that has always done what it was given."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.time = 0.0

    def record(self) -> None:
        self.time = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.time - self.time)


class Stream:
    def wait_stream(self, stream: Stream) -> None:
        pass


def sleep(cycles: int) -> None:
    """Keep the host waiting, as a GPU does not."""
    end = time.perf_counter() + 1e-9 * cycles
    while time.perf_counter() < end:
        pass


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a real GPU")
    fakes = {
        "Event": Event,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: nullcontext(),
        "synchronize": lambda: None,
        "set_sync_debug_mode": lambda mode: None,
        "_sleep": sleep,
        "memory_allocated": lambda: 0,
        "max_memory_allocated": lambda: 0,
        "reset_peak_memory_stats": lambda: None,
        "make_graphed_callables": lambda net, inputs: replayed.captured(net),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)


@pytest.mark.parametrize("half", [False, True])
def test_syncs_trains_in_both_precisions(half: bool) -> None:
    syncs._train("sampa", "adamw-fused", half)


def test_syncs_notices_where_waiting_is_no_error() -> None:
    with pytest.raises(AssertionError, match="was not seen to wait"):
        syncs._refused(TEXTS["ae-sam"])


def test_ahead_notices_a_host_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "ASLEEP", 50.0)
    assert ahead._fraction("sam") >= 1


def test_streams_compares_two_trainings() -> None:
    assert streams._difference("sampa") == 0


def test_memory_notices_an_allocator_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "there_are_gpus", lambda: True)
    monkeypatch.setattr(memory, "_width", lambda: 8)
    memory._plain_peak.cache_clear()
    with pytest.raises(AssertionError, match="2 P, but the measured peak is 0 P"):
        memory._beyond("sam", "sgd")


def test_launches_compares_what_the_profiler_sees_with_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = launches._most("sam", "sgd")  # of every step of SAM

    def seen(work: launches.Step) -> int:
        work()
        return 2 * 1000 + 3 * int(counted) if isinstance(work, partial) else 1000  # two passes and more, or one pass

    monkeypatch.setattr(launches, "kernels_of", seen)
    assert launches._ratio("sam", "sgd") == 3

    def nothing(work: launches.Step) -> int:
        work()
        return 0

    monkeypatch.setattr(launches, "kernels_of", nothing)
    with pytest.raises(AssertionError, match="0 launches are seen"):
        launches._ratio("sam", "sgd")


def test_times_are_beside_two_bare_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WARMUP": 1, "STEPS": 1, "ALONE": 1, "MODELS": {"waiting": ("resnet20", 2)}}.items():
        monkeypatch.setattr(timing, name, value)
    timing._bare.cache_clear()
    found = timing._relative("waiting", "sampa", "adamw")
    assert list(found) == ["GPU ms", "host ms", "GPU ms / bare", "host ms / bare"]
    assert found["GPU ms / bare"] == found["GPU ms"] / timing._bare("waiting")["GPU ms"]
    timing._bare.cache_clear()
    assert len(executors._executors("waiting")) == len(executors._streams("waiting")) == 4


@pytest.mark.parametrize("key", ["sam", "sampa"])
def test_graphs_follows_a_captured_model(key: str) -> None:
    assert graphs._difference(TEXTS[key], "make_graphed_callables") <= graphs.MOST


def test_graphs_notices_gradients_that_the_next_replay_overwrites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ownership, "own", lambda self, grads: list(grads))
    monkeypatch.setattr(Ownership, "check", lambda self, grads: None)
    assert graphs._difference(TEXTS["wsam"], "make_graphed_callables") > 1000 * graphs.MOST


@pytest.mark.slow
def test_ranks_are_compared_in_processes_of_their_own() -> None:
    dist.on_ranks.cache_clear()
    found = dist.on_ranks(1)  # NCCL's two ranks need two GPUs; their processes start like this one
    dist.on_ranks.cache_clear()
    assert len(found) == 20  # the process has a list of its own
    assert found == dict.fromkeys(found, pytest.approx(0, abs=dist.MOST))


def test_of_all_ranks_the_worst_one_counts() -> None:
    assert dist.worst([1.0, 3.0, 2.0]) == 3
    assert math.isnan(dist.worst([1.0, math.nan, 2.0]))
    assert dist.worst([1.0, "rank 1: an error"]) == "rank 1: an error"
    one, other = torch.tensor([1.0, 2.0]), torch.tensor([1.0, math.nan])
    assert math.isnan(largest_difference([one, other], [one, one]))
    assert math.isnan(largest_difference([other, one], [one, one]))
