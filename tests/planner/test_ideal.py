"""The closed form by hand: numbers are powers of two, so that sums are exact."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from lowland.core.errors import ArgumentError, UsageError
from lowland.methods import make
from lowland.planner.asks import Pass, Step, read
from lowland.planner.costs import REQUIRED, measure, specimen
from lowland.planner.ideal import Breakdown, device_hours, predict, step_time
from lowland.planner.line import Line
from lowland.planner.links import Link, Network, Place, flat
from lowland.planner.setting import Setting

# A gradient of n examples takes 2 + n s, of which 1 + n / 2 s are forward; a message of n bytes takes 1/4 + n / 16 s.
BASE: dict[str, Any] = {
    "gradient": Line(2.0, 1.0), "forward": Line(1.0, 0.5), "size": 32.0, "network": flat(Link(0.25, 16.0)),
}  # fmt: skip
ALONE = Setting(**BASE, batch=8)


def steps_of(key: str, probe: int = 1) -> tuple[Step, ...]:
    return read(make(key, fill=lambda k: REQUIRED.get(k, {})), width=probe)


def test_one_device_pays_for_passes() -> None:
    assert predict(steps_of("plain"), ALONE) == Breakdown(10, 0, 0, 0, 0)
    assert predict(steps_of("sam"), ALONE).total == 20
    assert predict(steps_of("looksam"), ALONE).total == pytest.approx(12)  # a fifth of the steps has two gradients
    assert predict(steps_of("micro-sam:m=4"), ALONE).total == 8 * (2 + 2)  # the base of every micro-batch's pass
    assert predict(steps_of("async-sam"), ALONE).total == 10 + 4
    assert predict(steps_of("k-sam"), ALONE).total == 5 + 2 * 6  # a forward of all, two gradients of the half
    assert predict(steps_of("sam-on"), ALONE).total == 20
    rest = replace(ALONE, arithmetic=0.5, update=0.25)
    assert predict(steps_of("sam"), rest) == Breakdown(20, 0, 0.5, 0.25, 0)
    assert predict(steps_of("sam"), rest).total == 20.75


def test_data_parallelism_pays_for_every_synchronized_gradient() -> None:
    two = Setting(**BASE, data=2, batch=16)
    reduce = 2 * (0.25 + 16 / 16)  # a ring of two: 2 messages of half of the bytes
    assert predict(steps_of("sam"), two) == Breakdown(20, 2 * reduce, 0, 0, 64)
    assert predict(steps_of("sampa"), two) == Breakdown(20, 2 * reduce, 0, 0, 64)
    assert predict(steps_of("micro-sam:m=4"), two) == Breakdown(32, reduce, 0, 0, 32)
    assert predict(steps_of("sam:ascent_gradient=local"), two) == Breakdown(20, reduce, 0, 0, 32)
    quarter = 2 * (0.25 + 4 / 16)  # SAM-ON's first gradient is of a quarter of the tensors
    assert predict(steps_of("sam-on"), two) == Breakdown(20, reduce + quarter, 0, 0, 40)


@pytest.mark.parametrize("key", ["plain", "sam", "looksam", "micro-sam", "async-sam", "rst", "vsam", "ausam"])
def test_bytes_are_the_counted_reduces(key: str) -> None:
    found = predict(steps_of(key), Setting(**BASE, data=4, batch=16))
    assert found.sent == pytest.approx(measure(specimen(key)).reduces * 1.5 * 32)


def test_a_mesh_runs_waves() -> None:
    pair = Setting(**BASE, probe=2, batch=8)
    gather = 0.25 + 32 / 16
    assert predict(steps_of("sampa", 2), pair) == Breakdown(10, gather, 0, 0, 32)
    assert predict(steps_of("async-sam", 2), pair) == Breakdown(10, gather, 0, 0, 32)
    assert predict(steps_of("micro-sam:m=4", 2), pair) == Breakdown(4 * 4, 4 * gather, 0, 0, 4 * 32)
    # Both groups compute each gradient of SAM, and the first one broadcasts it.
    assert predict(steps_of("sam", 2), pair) == Breakdown(20, 2 * gather, 0, 0, 2 * 16)
    # Five passes on two groups: two waves of two, and one of one.
    five: Step = ((Pass(0.5, 1.0, False, True),) * 5,)
    assert step_time(five, pair) == Breakdown(3 * 6, 3 * gather, 0, 0, 2 * 32 + 16)
    # Forward passes share losses, which count as nothing.
    forwards: Step = ((Pass(1.0, 0.0, False, False),) * 2,)
    assert step_time(forwards, pair) == Breakdown(5, 0, 0, 0, 0)


def test_both_dimensions() -> None:
    both = Setting(**BASE, probe=2, data=2, batch=16)
    reduce, gather = 2 * (0.25 + 16 / 16), 0.25 + 32 / 16
    assert predict(steps_of("sampa", 2), both) == Breakdown(10, reduce + gather, 0, 0, 32 + 32)
    # The group of AsyncSAM's smaller pass has averaged before the other one has.
    assert predict(steps_of("async-sam", 2), both) == Breakdown(10, reduce + gather, 0, 0, 32 + 32)
    local = predict(steps_of("sam:ascent_gradient=local", 2), both)
    assert local == Breakdown(20, 2 * gather + reduce, 0, 0, 2 * 16 + 32)


def test_what_hides_in_backward() -> None:
    # A backward of 5 s. Four messages of 8 bytes to one other device: 4 * 2 * (1/4 + 4 / 16) = 4 s.
    two = Setting(**BASE, data=2, batch=16, bucket=8.0)
    assert predict(steps_of("plain"), two).exchange == 4
    assert predict(steps_of("plain"), replace(two, overlap=0.5)).exchange == 4 - 2.5
    assert predict(steps_of("plain"), replace(two, overlap=1.0)).exchange == 1  # the last message
    assert predict(steps_of("plain"), replace(two, overlap=1.0, bucket=7.0)).exchange == pytest.approx(
        2 * (0.25 + 3.2 / 16)  # five messages
    )
    assert predict(steps_of("micro-sam"), replace(two, overlap=1.0)).exchange == 2.5  # in one message, after the passes
    # The gather of two devices hides; that of two groups of two devices begins after their averages.
    pair = Setting(**BASE, probe=2, batch=8, bucket=8.0, overlap=0.25)
    assert predict(steps_of("sampa", 2), pair).exchange == 4 * (0.25 + 0.5) - 1.25
    both = Setting(**BASE, probe=2, data=2, batch=16, bucket=8.0, overlap=0.25)
    assert predict(steps_of("sampa", 2), both).exchange == (4 - 1.25) + 4 * (0.25 + 0.5)
    # A gradient of a fraction of the tensors is averaged after backward.
    assert predict(steps_of("sam-on"), replace(two, overlap=1.0)).exchange == 1 + 2 * (0.25 + 4 / 16)


def test_places_on_hosts() -> None:
    network = Network(within=Link(0.0, 1e9), between=Link(0.0, 1e9), host=8)
    free = {name: value for name, value in BASE.items() if name != "network"}

    def places(**mesh: Any) -> tuple[Place, Place]:
        setting = Setting(**free, network=network, batch=1024, **mesh)
        return setting.probes, setting.replicas

    assert places() == (Place(1, 1), Place(1, 1))
    assert places(data=4) == (Place(1, 1, 4), Place(4, 1))
    assert places(data=16) == (Place(1, 1, 8), Place(8, 2))
    assert places(probe=2, data=2) == (Place(2, 1, 2), Place(2, 1, 2))
    assert places(probe=2, data=8) == (Place(2, 1, 4), Place(4, 2, 2))
    assert places(probe=2, data=8, inner="data") == (Place(1, 2, 8), Place(8, 1, 1))
    assert places(probe=2, data=16, inner="data") == (Place(1, 2, 8), Place(8, 2, 1))
    assert places(probe=16, data=2) == (Place(8, 2, 1), Place(1, 2, 8))
    for mesh in ({"data": 12}, {"data": 4, "probe": 3}, {"data": 8, "probe": 3}):
        with pytest.raises(ArgumentError, match="hosts must divide the mesh evenly"):
            places(**mesh)


@pytest.mark.parametrize("inner", ["probe", "data"])
@pytest.mark.parametrize("host", [1, 2, 3, 4, 6, 8])
def test_places_by_counting_ranks(host: int, inner: Any) -> None:
    free = {name: value for name, value in BASE.items() if name != "network"}
    network = Network(within=Link(0.0, 1e9), between=Link(0.0, 1e9), host=host)
    for probe, data in product(range(1, 9), range(1, 9)):
        numbers = {
            (g, i): i * probe + g if inner == "probe" else g * data + i for g in range(probe) for i in range(data)
        }
        hosts = {place: number // host for place, number in numbers.items()}
        counted = [_counted(hosts, dimension) for dimension in (0, 1)]
        try:
            setting = Setting(**free, network=network, probe=probe, data=data, batch=64, inner=inner)
        except ArgumentError:
            assert None in counted
        else:
            assert [setting.probes, setting.replicas] == counted


def _counted(hosts: dict[tuple[int, int], int], dimension: int) -> Place | None:
    """The place of the groups along a dimension; None if they are not alike."""
    groups: dict[int, Counter[int]] = {}
    for place, host in hosts.items():
        groups.setdefault(place[1 - dimension], Counter())[host] += 1
    inside = {count for group in groups.values() for count in group.values()}
    spans = {len(group) for group in groups.values()}
    shared = {sum(host in group for group in groups.values()) for host in hosts.values()}
    return Place(*inside, *spans, *shared) if len(inside) == len(spans) == len(shared) == 1 else None


def test_groups_of_a_host_share_its_link() -> None:
    network = Network(within=Link(0.0, 1e30), between=Link(0.0, 16.0), host=2)
    free = {name: value for name, value in BASE.items() if name != "network"}
    sampa = predict(steps_of("sampa", 2), Setting(**free, network=network, probe=2, data=2, batch=16))
    assert sampa.exchange == pytest.approx(2 * (16 / 8))  # two groups send 16 bytes twice at half of the bandwidth
    sam = predict(steps_of("sam"), Setting(**free, network=network, data=4, batch=16))
    assert sam.exchange == pytest.approx(2 * 2 * (8 / 8))  # each device sends half of its half twice, for 2 gradients


def test_examples_and_device_hours() -> None:
    both = Setting(**BASE, probe=2, data=4, batch=16)
    assert (both.devices, both.local, both.examples) == (8, 4.0, 16.0)
    local = Setting(**BASE, probe=2, data=4, per_device=4)
    assert (local.local, local.examples) == (4.0, 16.0)
    found = predict(steps_of("sampa", 2), both)
    assert found == predict(steps_of("sampa", 2), local)
    assert device_hours(found, both, examples=1600) == pytest.approx(8 * 100 * found.total / 3600)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": None}, "batch or per_device must be given"),
        ({"per_device": 2}, "batch or per_device must be given, and not both"),
        ({"batch": 0}, "batch must be > 0, but is 0"),
        ({"bucket": 0.0}, r"bucket must be > 0, but is 0\.0"),
        ({"size": -1.0}, "size must be a number >= 0"),
        ({"overlap": 1.5}, r"overlap must be in \[0, 1\], but is 1\.5"),
        ({"probe": 0}, "probe must be an integer >= 1, but is 0"),
        ({"data": 0}, "data must be an integer >= 1, but is 0"),
        ({"inner": "host"}, "inner must be one of 'probe', 'data'"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        replace(ALONE, **changes)


def test_asks_that_a_mesh_refuses() -> None:
    mixed: Step = ((Pass(1.0, 1.0, False, True), Pass(1.0, 0.0, False, False)),)
    assert step_time(mixed, ALONE).total == 15
    with pytest.raises(UsageError, match=r"fractions \[0\.0, 1\.0\] of the parameters; set probe=1"):
        step_time(mixed, Setting(**BASE, probe=2, batch=8))
    with pytest.raises(ArgumentError, match="steps must have at least one step"):
        predict((), ALONE)
