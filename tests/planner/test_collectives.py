from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import on_ranks

from lowland.planner import collectives
from lowland.planner.layout import Layout
from lowland.planner.survey import meshes


def test_lines_go_through_medians_and_need_two_sizes() -> None:
    laps: dict[Any, list[float]] = {
        ("all-reduce", 1000): [0.003, 0.002, 9.0],
        ("all-reduce", 3000): [0.007],
        ("broadcast", 4096): [0.001],
    }
    found = collectives.lines(laps)
    assert set(found) == {"all-reduce"}
    assert (found["all-reduce"].base, found["all-reduce"].slope) == pytest.approx((0.001, 2e-6))


def test_one_rank_has_no_collectives() -> None:
    assert collectives.turns(Layout(), None, 1 << 20, torch.device("cpu")) == {}


def stepped() -> dict[str, list[Any]]:
    """The turns of both layouts of two ranks, each taken once."""
    layouts = [Layout(data=2), Layout(probe=2)]
    mesh = meshes(layouts, "cpu")
    found = {}
    for layout in layouts:
        turns = collectives.turns(layout, mesh[layout], 1 << 20, torch.device("cpu"))
        for turn in turns.values():
            turn.step()
        found[str(layout)] = list(turns)
    return found


@pytest.mark.slow
def test_the_collectives_of_each_dimension_run_on_two_ranks() -> None:
    for found in on_ranks(2, stepped):
        sizes = [1 << 16, 1 << 18, 1 << 20]
        assert found["data=2"] == [("all-reduce", size) for size in sizes]
        assert found["probe=2"] == [(name, size) for name in ("all-gather", "broadcast") for size in sizes]
