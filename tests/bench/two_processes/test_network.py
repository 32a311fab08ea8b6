from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from lowland.bench.two_processes import network as networks
from lowland.bench.two_processes.network import DEVICE, Network, network
from lowland.core.errors import ArgumentError, UsageError

SEND = """
import socket, sys, time
with socket.create_server(("10.211.55.1", 7001)) as server:
    print("ready", flush=True)
    there, _ = server.accept()
    with there:
        there.sendall(bytes(int(sys.argv[1])))
"""
RECEIVE = """
import socket, time
with socket.create_connection(("10.211.55.1", 7001), timeout=10) as there:
    start, got = time.perf_counter(), 0
    while part := there.recv(1 << 16):
        got += len(part)
    print(got * 8e-6 / (time.perf_counter() - start))
"""


def _namespaces() -> list[str]:
    told = subprocess.run(["ip", "-json", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [entry["name"] for entry in json.loads(told or "[]") if entry["name"].startswith("lowland-")]


@pytest.fixture
def joined() -> Any:
    """A real network; skipped where there can be none."""
    try:
        with network() as made:
            yield made
    except UsageError as error:
        pytest.skip(f"no limited network here: {error}")


def _passed(joined: Network, count: int) -> float:
    """Mbit/s at which ``count`` bytes come through."""
    run = [[*prefix, sys.executable, "-c"] for prefix in joined.prefixes]
    with subprocess.Popen([*run[0], SEND, str(count)], stdout=subprocess.PIPE, text=True) as sender:
        assert sender.stdout is not None
        assert sender.stdout.readline() == "ready\n"
        told = subprocess.run([*run[1], RECEIVE], capture_output=True, text=True, check=True).stdout
    return float(told)


def test_a_limit_holds_and_can_be_changed(joined: Network) -> None:
    for mbit, count in ((20.0, 1_000_000), (100.0, 5_000_000)):
        joined.limit(mbit)
        # Headers take 4.5 %; what may leave at once adds a few percent to so short a transfer.
        assert 0.7 * mbit < _passed(joined, count) < 1.1 * mbit


def test_nothing_is_left(joined: Network) -> None:
    before = set(_namespaces())
    assert before >= set(joined.names)

    def interrupted() -> None:
        with network() as other:
            assert set(_namespaces()) == before | set(other.names)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert set(_namespaces()) == before


def test_other_programs_see_nothing_of_it(joined: Network) -> None:
    assert DEVICE not in [name for _, name in socket.if_nameindex()]


class Fake:
    """Stands for ``subprocess.run``: notes commands, and fails those with a word in them."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.commands: list[str] = []

    def __call__(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(" ".join(command))
        fails = bool(self.failing) and self.failing in command
        return subprocess.CompletedProcess(command, int(fails), "", "Error: not\n permitted" if fails else "")


def _root(monkeypatch: pytest.MonkeyPatch, fake: Fake) -> Fake:
    monkeypatch.setattr(networks.sys, "platform", "linux")
    monkeypatch.setattr(networks.os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda tool: f"/sbin/{tool}")
    monkeypatch.setattr(subprocess, "run", fake)
    return fake


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _root(monkeypatch, Fake())
    networks.check()
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "tc" else "/sbin/ip")
    with pytest.raises(UsageError, match="but tc cannot be found; install iproute2"):
        networks.check()
    monkeypatch.setattr(networks.os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match=r"needs root.*is 1000; .* sudo"):
        networks.check()
    monkeypatch.setattr(networks.sys, "platform", "darwin")
    with pytest.raises(UsageError, match="this is darwin; use Linux"):
        networks.check()


def test_what_the_kernel_refuses_is_told_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = _root(monkeypatch, Fake("veth"))
    told = r"must allow veth pairs, but `ip link add .*` failed \(Error: not permitted\); run it outside containers"
    with pytest.raises(UsageError, match=told), network():
        pass
    made = [c.replace("add", "delete") for c in fake.commands if c.startswith("ip netns add")]
    assert len(made) == 2
    assert fake.commands[-2:] == made[::-1]
    fake = _root(monkeypatch, Fake("netem"))
    with pytest.raises(UsageError, match=r"must allow netem.*leave the delay out, or load it: modprobe sch_netem"):
        networks.rehearse([30.0], delay=1.0)
    assert fake.commands[-1].startswith("ip netns delete")


def test_both_directions_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = _root(monkeypatch, Fake())
    joined = Network(("a", "b"))
    joined.limit(30.0)
    assert fake.commands == [
        f"tc -n {name} qdisc replace dev {DEVICE} root tbf rate 30.0mbit burst 16384 latency 400ms" for name in "ab"
    ]
    fake.commands.clear()
    joined.limit(10000.0, delay=2.0)
    assert fake.commands[2:] == [
        f"tc -n b qdisc replace dev {DEVICE} root handle 1: netem delay 2.0ms limit 100000",
        f"tc -n b qdisc replace dev {DEVICE} parent 1:1 handle 10: tbf rate 10000.0mbit burst 312500 latency 400ms",
    ]


@pytest.mark.parametrize(("mbit", "delay"), [(0.0, 0.0), (-1.0, 0.0), (float("nan"), 0.0), (10.0, -1.0)])
def test_bad_limits(mbit: float, delay: float) -> None:
    with pytest.raises(ArgumentError, match="must be a number >= "):
        Network(("a", "b")).limit(mbit, delay)
