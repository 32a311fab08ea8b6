"""What single collectives take, against their bytes, over the dimensions of a mesh."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, Literal

import torch
import torch.distributed as dist

from lowland.executors.mesh.exchange import all_gather
from lowland.planner.layout import Layout
from lowland.planner.line import Line, fit
from lowland.planner.turns import Turn

Operation = Literal["all-reduce", "all-gather", "broadcast"]
OPERATIONS: dict[str, tuple[Operation, ...]] = {"data": ("all-reduce",), "probe": ("all-gather", "broadcast")}
CUTS = (16, 4, 1)  # by which the bytes of the parameters are divided
LEAST = 4096  # bytes


def turns(layout: Layout, mesh: Any, parameters: int, device: torch.device) -> dict[tuple[Operation, int], Turn]:
    """The turns that time the collectives of a layout's dimensions, by operation and bytes of one rank.

    Args:
        layout: The layout.
        mesh: Its ``DeviceMesh``; None on one rank, which has no turns.
        parameters: The bytes of the parameters.
        device: The device of the tensors.
    """
    made: dict[tuple[Operation, int], Turn] = {}
    for name, ranks in (("probe", layout.probe), ("data", layout.data)):
        for operation in OPERATIONS[name] if ranks > 1 and mesh is not None else ():
            for size in sorted({max(parameters // cut, LEAST) // 4 * 4 for cut in CUTS}):
                made[operation, size] = Turn(_step(operation, mesh[name].get_group(), ranks, size, device))
    return made


def _step(operation: Operation, group: Any, ranks: int, size: int, device: torch.device) -> Callable[[], None]:
    mine = torch.zeros(size // 4, device=device)
    everyone = torch.zeros(ranks * len(mine), device=device)

    def step() -> None:
        if operation == "all-reduce":
            dist.all_reduce(mine, group=group)
        elif operation == "all-gather":
            all_gather(everyone, mine, group).wait()
        else:
            dist.broadcast(mine, group=group, group_src=0)

    return step


def lines(laps: Mapping[tuple[Operation, int], Sequence[float]]) -> dict[str, Line]:
    """Seconds against bytes, by operation, from the times of :func:`turns`; none where only one size was timed."""
    found: dict[str, dict[int, float]] = {}
    for (operation, size), row in laps.items():
        found.setdefault(operation, {})[size] = max(median(row), 1e-9)
    return {name: fit(list(by), list(by.values())) for name, by in found.items() if len(by) > 1}
