from __future__ import annotations

import io
import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from lowland.bench.two_processes import closed_form
from lowland.bench.two_processes import driver as parallel
from lowland.bench.two_processes import pair as pairs
from lowland.bench.two_processes import worker as parallel_worker
from lowland.bench.two_processes.pair import pair
from lowland.core.errors import ArgumentError, LowlandError, UnknownNameError

TINY = {"model": "mlp", "batch": 8, "size": 8}


VARIANTS = ["plain", "sam", "plain-twice", "half-twice", "dp-plain", "dp-sam", "sampa", "sampa-messages"]


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(parallel.CASES, "tiny", parallel.Case(**TINY))
        ticks: list[int] = []
        found = parallel.measure("tiny", rounds=6, tick=lambda: ticks.append(1))
    assert len(ticks) == parallel.WARMUP + 6
    return found


@pytest.mark.slow
def test_all_variants_are_measured(result: dict[str, Any]) -> None:
    assert list(result["median_ms"]) == VARIANTS
    assert all(ms > 0 for ms in result["median_ms"].values())
    assert list(result["ratios"]) == [f"{a} / {b}" for a, b in parallel.RATIOS]
    assert all(math.isfinite(ratio) and ratio > 0 for ratio in result["ratios"].values())
    assert result["rounds"] == 6
    base = result["closed_form"]["base_ms"]
    assert base <= result["median_ms"]["half-twice"]
    assert result["closed_form"] == closed_form.times(parallel.Case(**TINY), result["median_ms"])
    assert json.loads(json.dumps(result)) == result


@pytest.mark.slow
def test_sampa_exchanges_half_of_what_data_parallel_sam_does(result: dict[str, Any]) -> None:
    size = result["parameters"]
    assert size == 4 * ((3 * 8 * 8 + 1) * 256 + (256 + 1) * 256 + (256 + 1) * 10)
    alone = dict.fromkeys(("plain", "sam", "plain-twice", "half-twice"), 0)
    each = dict.fromkeys(("dp-plain", "sampa", "sampa-messages"), size)
    assert result["bytes"] == {**alone, **each, "dp-sam": 2 * size}


@pytest.mark.slow
def test_the_waiting_of_all_that_exchange_is_measured(result: dict[str, Any]) -> None:
    exchanging = ["dp-plain", "dp-sam", "sampa", "sampa-messages"]
    assert list(result["exposed_ms"]) == list(result["exposed_share"]) == exchanging
    for name in exchanging:
        assert 0 < result["exposed_share"][name] < 1
        assert 0 < result["exposed_ms"][name] < result["median_ms"][name]


@pytest.mark.slow
def test_the_network_device_counts_what_is_exchanged(result: dict[str, Any]) -> None:
    if None in result["wire_bytes"].values():
        pytest.skip("no /proc/net/dev here to count bytes on the network device")
    for name, told in result["bytes"].items():
        if name == "sampa":
            continue  # it goes through memory
        # Headers, acknowledgments, losses and barriers come on top; other programs may use the device, too.
        assert told <= result["wire_bytes"][name]  # and what other processes send over the loopback device


def _used(process: Any) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
def test_a_resting_rank_sleeps_and_a_failing_one_ends_both() -> None:
    with pair() as both:
        both.order(case=TINY, apart=False)
        assert [answer["parameters"] for answer in both.answers()] == [parallel.Case(**TINY).bytes()] * 2
        if Path("/proc/self/stat").exists():
            os.kill(both.processes[0].pid, signal.SIGSTOP)  # for rank 1 as if rank 0 took a long step alone
            both.order(rounds=1)
            deadline, before = time.monotonic() + 0.8, _used(both.processes[1])
            while time.monotonic() < deadline:
                used = _used(both.processes[1]) - before
            os.kill(both.processes[0].pid, signal.SIGCONT)
            assert used < 0.3
            assert len(both.answers()) == 2
        stdin = both.processes[1].stdin
        assert stdin is not None
        os.write(stdin.fileno(), b'{"case": {"model": "mlp", "batch": 7}}\n')  # while rank 0 waits for it in a round
        both.order(rounds=1)
        with pytest.raises(LowlandError, match=r"rank 1 of the benchmark failed:(.|\n)*batch must be even, but is 7"):
            both.answers()
    assert None not in [process.poll() for process in both.processes]  # none is left


def _shell(*scripts: str) -> Any:
    """Two processes that run these lines, and never get to their own command."""
    return pair([["sh", "-c", script] for script in scripts], patience=0.1)


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ("exec sleep 60", "echo no such thing >&2; exit 3", r"^rank 1 .* ended with exit code 3:\nno such thing$"),
        ("exec sleep 60", "kill -9 $$", r"^rank 1 .* ended with exit code -9:\n\(it wrote nothing\)$"),
        # The rank that is lost is told of, also where the other one misses it first.
        ("""echo '{"error": "lost"}'""", "sleep 0.2; kill -9 $$", r"(?s)^rank 0 .* failed:\nlost\nrank 1 .* code -9"),
        ("exec sleep 60", "exec sleep 60", "^rank 0 of the benchmark gave no answer for 0 s"),
        ("""echo '{"a": 1}'; exec sleep 60""", "exec sleep 60", "^rank 1 of the benchmark gave no answer"),
    ],
)
def test_what_goes_wrong_is_told(first: str, second: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "GRACE", 0.3)
    monkeypatch.setattr(pairs, "PAUSE", 0.5)
    with _shell(first, second) as both:
        with pytest.raises(LowlandError, match=told):
            both.answers()
        both.order(rounds=1)  # one that is gone takes no order, and that is no error
    assert None not in [process.poll() for process in both.processes]  # none is left


def _round(sampa: float, plain: float, slower: float) -> list[dict[str, Any]]:
    """The answers of two ranks, of which rank 1 is the slower one."""
    names = VARIANTS[:-1]  # with a network between, there is one way to exchange
    first = {
        "seconds": {**dict.fromkeys(names, 1.0), "sampa": sampa, "plain": plain},
        "bytes": dict.fromkeys(names, 8),
        "wire": dict.fromkeys(names, 20),
        "waited": {"sampa": [0.1], "dp-sam": [0.4, 0.1]},
    }
    both = {name: s + slower for name, s in first["seconds"].items() if name not in ("plain", "sam")}
    return [first, {**first, "seconds": both, "waited": {"sampa": [0.3], "dp-sam": [0.2, 0.3]}}]


def test_a_step_is_as_long_as_the_slower_rank() -> None:
    found = parallel.summary([_round(1.0, 1.0, 0.5), _round(2.0, 2.0, 1.0), _round(9.0, 1.0, 0.0)], senders=2)
    assert found["median_ms"]["sampa"] == 3000  # of 1.5, 3 and 9 seconds
    assert next(iter(found["ratios"])) == "sampa / plain-twice"
    assert found["ratios"]["sampa / plain-twice"] == 1.5  # of 1.5 / 1.5, 3 / 2 and 9 / 1
    assert found["ratios"]["sampa / plain"] == 1.5  # of 1.5, 1.5 and 9, round by round
    # of the rank that had less to wait for, so came last: in the first exchange of dp-sam it was the other rank
    assert found["exposed_ms"] == {"sampa": 100, "dp-sam": 300}
    # in 1.5, 3 and 9 seconds, and in 1.5, 2 and 1 seconds
    assert found["exposed_share"] == {"sampa": round(0.1 / 3, 4), "dp-sam": round(0.3 / 1.5, 4)}
    assert found["wire_bytes"]["sampa"] == 10  # the device served both ranks
    assert "sampa / sampa-messages" not in found["ratios"]
    nobody = [{**rank, "wire": dict.fromkeys(rank["wire"])} for rank in _round(1.0, 1.0, 0.0)]
    assert set(parallel.summary([nobody], senders=1)["wire_bytes"].values()) == {None}


@pytest.mark.parametrize(
    ("ratios", "at", "turns"),
    [
        ([0.5, 0.6, 0.9], [1000, 100, 10], []),
        ([0.5, 2.0, 4.0], [1000], [316.0]),  # halfway between 1000 and 100, both on a logarithmic scale
        ([2.0, 1.0, 0.5], [10], [100.0]),
        ([0.5, 2.0, 0.5], [1000, 10], [316.0, 31.6]),
        ([1.5, 1.2, 1.1], [], []),
    ],
)
def test_where_one_is_faster(ratios: list[float], at: list[float], turns: list[float]) -> None:
    found = [{"mbit": m, "ratios": {"a / b": r}} for m, r in zip((1000.0, 100.0, 10.0), ratios, strict=True)]
    assert parallel.crossings(found, "a", "b") == {"at": at, "turns": turns}


def test_bad_input() -> None:
    with pytest.raises(UnknownNameError, match="resnet20-batch64"):
        parallel.measure("resnet20-batch6")
    with pytest.raises(ArgumentError, match="rounds must be an integer >= 5"):
        parallel.measure("resnet20-batch64", rounds=4)
    with pytest.raises(ArgumentError, match="batch must be even"):
        parallel.Case("mlp", 7)
    for wrong, message in (((), "one or more"), ((5.0, 5.0), "all different"), ((0.0,), r"number >= 0\.1")):
        with pytest.raises(ArgumentError, match=message):
            parallel.checked(wrong)
    assert parallel.checked((30, 1000, 100)) == [1000, 100, 30]


def test_the_cases_are_those_of_the_claim() -> None:
    assert {name: (case.model, case.batch, case.size) for name, case in parallel.CASES.items()} == {
        "resnet20-batch64": ("resnet20", 64, 32),
        "resnet56-batch16": ("resnet56", 16, 32),
    }


def test_traffic_is_what_a_device_has_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = "head |\n  lo: 1 2 3 4 5 6 7 8 77 9\nlocal: 1 2 3 4 5 6 7 8 99 9\n"
    monkeypatch.setattr("builtins.open", lambda path: io.StringIO(counts))
    assert parallel_worker.traffic("lo") == 77
    assert parallel_worker.traffic("eth7") is None
