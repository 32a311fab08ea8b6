"""``lowland bench launches``: what a step launches and moves beside its passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.table import Table

import lowland
from lowland.bench import launches
from lowland.cli.bench.command import Measurement
from lowland.methods import METHODS


@dataclass(kw_only=True)
class Launches(Measurement):
    """Count the operator calls of every method beside its passes, and the bytes that they move; write JSON.

    A launch is an operator call. On a GPU each launch takes some microseconds of the host, so on many small tensors
    their number is what a method costs beside its passes. On large tensors the bytes moved are. Forward, backward and
    the base optimizer's step are not counted. Nothing is timed: the counts need no GPU and are the same on every
    machine with the same version of torch.

    Case 160-tensors is a chain of 80 linear layers with 528 entries per tensor; case resnet56 has 167 tensors. Both
    together take a minute on one free core.
    """

    name = "launches"
    known = launches.CASES

    def measure(self, case: str, tick: Callable[[], None]) -> dict[str, Any]:
        """See :meth:`Measurement.measure`."""
        return launches.measure(case, tick)

    def total(self) -> int:
        """See :meth:`Measurement.total`."""
        return len(METHODS)

    def tables(self, result: dict[str, Any]) -> Iterable[Table | str]:
        """Launches and bytes of one case, one row per method and optimizer, and what the columns mean."""
        yield _table(result)
        yield (
            f'Means of {result["steps"]} steps. P is the size of the parameters; "× P" and MB are bytes read and '
            "written. Where steps differ, the fewest and the most launches stand in parentheses."
        )
        for name in result["left_out"]:
            yield f"{name} is left out, because {result['case']} has no normalization layer."

    def machine(self) -> dict[str, Any]:
        """The versions: the counts depend on nothing else."""
        return {"torch": torch.__version__, "lowland": lowland.__version__}


def _table(result: dict[str, Any]) -> Table:
    """One row per method and optimizer."""
    title = f"{result['case']}: {result['tensors']} tensors, {result['parameters']:,} parameters"
    rows = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    rows.add_column("method", overflow="fold")
    rows.add_column("optimizer")
    for name in ("passes", "launches of a step", "× P moved", "MB moved"):
        rows.add_column(name, justify="right")
    for count in result["counts"]:
        rows.add_row(
            count["method"],
            count["optimizer"],
            f"{count['passes']:g}",
            _launches(count),
            f"{count['vectors']:.1f}",
            f"{count['bytes'] / 1e6:.1f}",
        )
    return rows


def _launches(count: dict[str, Any]) -> str:
    """The mean, with the fewest and the most where they differ."""
    mean = f"{count['launches']:g}"
    return mean if count["least"] == count["most"] else f"{mean} ({count['least']} to {count['most']})"
