"""Closed forms of collectives against hand-computed values and against messages sent one by one."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from lowland.core.errors import ArgumentError
from lowland.planner.links import (
    Algorithm,
    Link,
    Network,
    Place,
    all_gather,
    all_gather_bytes,
    all_reduce,
    all_reduce_bytes,
    broadcast,
    broadcast_bytes,
    flat,
    reduce_scatter,
)

LINK = Link(latency=2.0, bandwidth=10.0)


def test_values_by_hand() -> None:
    assert LINK(30) == 5.0
    assert LINK.shared(2)(30) == 8.0
    assert reduce_scatter(LINK, 3, 60) == 2 * (2 + 20 / 10)
    assert all_gather(LINK, 3, 20) == 2 * (2 + 20 / 10)
    assert broadcast(LINK, 5, 20) == 3 * (2 + 20 / 10)
    assert all_reduce(LINK, 2, 40) == all_reduce(LINK, 2, 40, "halving") == 2 * (2 + 20 / 10)
    assert all_reduce(LINK, 4, 80) == 6 * (2 + 20 / 10)
    assert all_reduce(LINK, 4, 80, "tree") == 4 * (2 + 80 / 10)
    assert all_reduce(LINK, 4, 80, "halving") == 4 * 2 + 2 * 0.75 * 80 / 10
    assert all_reduce(LINK, 5, 80, "halving") == 4 * 2 + 2 * 0.75 * 80 / 10 + 2 * (2 + 80 / 10)


def test_one_rank_sends_nothing() -> None:
    found = [reduce_scatter(LINK, 1, 9), all_gather(LINK, 1, 9), broadcast(LINK, 1, 9)]
    found += [all_reduce(LINK, 1, 9, how) for how in ("ring", "tree", "halving")]
    assert found == [0.0] * 6


class Ranks:
    """Ranks with real numbers, that send real messages in rounds, and a clock for each rank."""

    def __init__(self, count: int, size: int) -> None:
        rng = np.random.default_rng(count)
        self.values = rng.integers(0, 100, (count, size)).astype(float)
        self.sum = self.values.sum(0)
        self.clock = [0.0] * count
        self.sent = [0.0] * count

    def round(self, messages: list[tuple[int, int, slice, bool]]) -> None:
        """Messages at the same time: from, to, the entries, and whether they are added."""
        before, clock = self.values.copy(), list(self.clock)
        for source, target, entries, added in messages:
            values = before[source, entries]
            self.values[target, entries] = before[target, entries] + values if added else values
            took = max(clock[source], clock[target]) + LINK(len(values))
            for rank in (source, target):
                self.clock[rank] = max(self.clock[rank], took)
            self.sent[source] += len(values)


def ring(ranks: Ranks) -> None:
    count, size = ranks.values.shape
    part = [slice(i * size // count, (i + 1) * size // count) for i in range(count)]
    for added, first in ((True, 0), (False, 1)):
        for t in range(count - 1):
            ranks.round([(r, (r + 1) % count, part[(r - t + first) % count], added) for r in range(count)])


def tree(ranks: Ranks) -> None:
    count, size = ranks.values.shape
    spans = [1 << n for n in range((count - 1).bit_length())]
    for span in spans:
        ranks.round([(r, r - span, slice(0, size), True) for r in range(span, count, 2 * span)])
    for span in reversed(spans):
        ranks.round([(r - span, r, slice(0, size), False) for r in range(span, count, 2 * span)])


def halving(ranks: Ranks) -> None:
    count, size = ranks.values.shape
    paired = 1 << (count.bit_length() - 1)
    ranks.round([(r, r - paired, slice(0, size), True) for r in range(paired, count)])
    own = [(0, size)] * paired
    span = paired // 2
    while span:
        kept = []
        for r, (low, high) in enumerate(own):
            middle = (low + high) // 2
            kept.append((middle, high) if r & span else (low, middle))
        ranks.round([(r, r ^ span, slice(*kept[r ^ span]), True) for r in range(paired)])
        own, span = kept, span // 2
    span = 1
    while span < paired:
        ranks.round([(r, r ^ span, slice(*own[r]), False) for r in range(paired)])
        own = [(min(own[r][0], own[r ^ span][0]), max(own[r][1], own[r ^ span][1])) for r in range(paired)]
        span *= 2
    ranks.round([(r - paired, r, slice(0, size), False) for r in range(paired, count)])


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 8, 16])
@pytest.mark.parametrize(("how", "run"), [("ring", ring), ("tree", tree), ("halving", halving)])
def test_an_all_reduce_message_by_message(count: int, how: Algorithm, run: Callable[[Ranks], None]) -> None:
    size = 16 * count
    ranks = Ranks(count, size)
    run(ranks)
    assert np.array_equal(ranks.values, np.tile(ranks.sum, (count, 1)))  # the messages do what an all-reduce does
    assert max(ranks.clock) == pytest.approx(all_reduce(LINK, count, size, how), rel=1e-12)
    assert np.mean(ranks.sent) == pytest.approx(all_reduce_bytes(count, size), rel=1e-12)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8])
def test_a_broadcast_and_an_all_gather_message_by_message(count: int) -> None:
    ranks = Ranks(count, 6)
    first = ranks.values[0].copy()
    for span in reversed([1 << n for n in range((count - 1).bit_length())]):
        ranks.round([(r - span, r, slice(0, 6), False) for r in range(span, count, 2 * span)])
    assert np.array_equal(ranks.values, np.tile(first, (count, 1)))
    assert max(ranks.clock) == pytest.approx(broadcast(LINK, count, 6))
    assert np.mean(ranks.sent) == pytest.approx(broadcast_bytes(count, 6))
    ranks = Ranks(count, 4 * count)
    parts = np.concatenate([ranks.values[r, 4 * r : 4 * r + 4] for r in range(count)])
    for t in range(count - 1):
        messages = []
        for r in range(count):
            start = 4 * ((r - t) % count)
            messages.append((r, (r + 1) % count, slice(start, start + 4), False))
        ranks.round(messages)
    assert np.array_equal(ranks.values, np.tile(parts, (count, 1)))
    assert max(ranks.clock) == pytest.approx(all_gather(LINK, count, 4))
    assert np.mean(ranks.sent) == pytest.approx(all_gather_bytes(count, 4))


def test_hosts_by_hand() -> None:
    # 2 hosts of 4 devices; a device sends 100 bytes/s within its host, and a host 40 bytes/s to the other.
    network = Network(within=Link(1.0, 100.0), between=Link(3.0, 40.0), host=4)
    whole = Place(inside=4, hosts=2)
    # 3 messages of 200 inside, 2 of 100 between by each of the 4 devices at 10 bytes/s, 3 of 200 inside.
    assert network.all_reduce(whole, 800) == 3 * (1 + 2) + 2 * (3 + 10) + 3 * (1 + 2)
    half = Place(inside=2, hosts=2, groups=2)  # two groups of 2 x 2 share the link
    # 1 message of 400 inside, 2 of 200 between at 10 bytes/s, 1 of 400 inside.
    assert network.all_reduce(half, 800) == (1 + 4) + 2 * (3 + 20) + (1 + 4)
    # 80 bytes of each device to the other host at 10 bytes/s; then 3 messages of 160 inside.
    assert network.all_gather(whole, 80) == (3 + 8) + 3 * (1 + 1.6)
    # The first device sends 80 bytes to the other host at 40 / 2 bytes/s; then 1 round inside.
    assert network.broadcast(half, 80) == (3 + 4) + 1 * (1 + 0.8)
    assert whole.ranks == 8


@pytest.mark.parametrize("algorithm", ["ring", "tree", "halving"])
def test_one_host_and_hosts_of_one_device_are_flat(algorithm: Algorithm) -> None:
    network = Network(within=LINK, between=Link(0.0, math.inf), host=4, algorithm=algorithm)
    assert network.all_reduce(Place(4, 1), 24) == all_reduce(LINK, 4, 24, algorithm)
    other = flat(LINK, algorithm)
    assert other.all_reduce(Place(1, 6), 24) == all_reduce(LINK, 6, 24, algorithm)
    assert other.all_gather(Place(1, 6), 24) == all_gather(LINK, 6, 24)
    assert other.broadcast(Place(1, 6), 24) == broadcast(LINK, 6, 24)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Link(-1.0, 1.0), "latency must be a number >= 0, but is -1.0"),
        (lambda: Link(0.0, 0.0), "bandwidth must be > 0, but is 0.0"),
        (lambda: Link(0.0, math.nan), "bandwidth must be > 0, but is nan"),
        (lambda: Network(within=LINK, between=LINK, host=0), "host must be an integer >= 1, but is 0"),
        (lambda: Network(within=LINK, between=LINK, algorithm="star"), "algorithm must be one of 'ring'"),  # type: ignore[arg-type]
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()
