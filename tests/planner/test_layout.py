from __future__ import annotations

from typing import Any

import pytest

from lowland import LookSAM, MicroSAM, Plain, SAMPa
from lowland.core.errors import ArgumentError
from lowland.planner.asks import Pass, read
from lowland.planner.layout import Layout, layouts, suits, waves

FULL, SOME, FORWARD = Pass(1.0, 1.0, True, True), Pass(1.0, 0.5, True, True, 0.4), Pass(1.0, 0.0, True, False, 0.0)


def test_all_ways_to_divide_a_step() -> None:
    assert [str(one) for one in layouts(1, None)] == ["one device"]
    assert [(one.probe, one.data) for one in layouts(6, 12)] == [(1, 6), (2, 3), (3, 2), (6, 1)]
    # four parts of ten examples differ, and a batch that cannot be cut has no parts
    assert [(one.probe, one.data) for one in layouts(4, 10)] == [(2, 2), (4, 1)]
    assert [(one.probe, one.data) for one in layouts(4, None)] == [(4, 1)]
    assert layouts(3, 64) == [Layout(probe=3)]


def test_words_ranks_and_width() -> None:
    both = Layout(probe=2, data=3, micro_batch=8)
    assert (str(both), both.ranks, both.width) == ("probe=2,data=3, micro-batches of 8", 6, 2)
    assert Layout().mesh is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"probe": 0}, "probe must be an integer >= 1"),
        ({"data": 1.5}, "data must be an integer >= 1"),
        ({"micro_batch": 0}, "micro_batch must be an integer >= 1"),
    ],
)
def test_wrong_layouts(fields: dict[str, Any], words: str) -> None:
    with pytest.raises((ArgumentError, TypeError), match=words):
        Layout(**fields)


def test_a_probe_group_must_have_a_probe() -> None:
    two, four = Layout(probe=2), Layout(probe=4)
    assert suits(Layout(data=2), read(Plain()))
    assert not suits(two, read(Plain(), width=2))
    assert not suits(two, read(LookSAM(), width=2))
    assert suits(two, read(SAMPa(), width=2))
    assert not suits(four, read(SAMPa(), width=4))
    assert suits(four, read(MicroSAM(m=4), width=4))


def test_a_mesh_divides_passes_that_are_alike() -> None:
    two = Layout(probe=2)
    assert suits(two, (((FULL, FULL),),))
    assert suits(two, (((SOME, SOME),),))
    assert not suits(two, (((FULL, SOME),),))
    assert not suits(two, (((FULL, FORWARD),),))
    assert suits(Layout(data=2), (((FULL, FORWARD),),))


def test_waves() -> None:
    assert [waves((FULL,) * n, 2) for n in (1, 2, 3, 4)] == [1, 1, 2, 2]
    assert waves((FULL,) * 5, 4) == 2
