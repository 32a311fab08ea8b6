"""``lowland bench``: measure this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lowland.errors import ArgumentError
from lowland.lab import overhead


@dataclass(kw_only=True)
class Bench:
    """Measure what methods cost here beyond their gradients; print ratios and write JSON.

    Args:
        what: overhead: step times of SAM, LookSAM and SAMPa next to bare gradients and to pytorch_optimizer's SAM
            (where it is installed), interleaved, in one process on one thread; of gradients for some of the tensors,
            as SL-SAM and ESAM ask for them, next to full ones; and peak memory.
        cases: What to measure on.
        rounds: Rounds that count, >= 5; every variant takes one step a round.
        out: The JSON file.
    """

    what: tyro.conf.Positional[Literal["overhead"]] = "overhead"
    cases: tuple[str, ...] = tuple(overhead.CASES)
    rounds: int = 60
    out: Path = Path("bench-overhead.json")

    def run(self, console: Console, argv: Sequence[str]) -> int:
        """Measure, print, write."""
        _check_writable(self.out)  # before the minutes of measuring, not after
        found = [_watched(name, self.rounds, console) for name in self.cases]
        for result in found:
            console.print(table(result))
        self.out.write_text(json.dumps({"machine": overhead.machine(), "cases": found}, indent=2) + "\n")
        console.print(f"written: {self.out}", markup=False, highlight=False, soft_wrap=True)
        return 0


def _check_writable(out: Path) -> None:
    try:
        out.open("a").close()
    except OSError as error:
        raise ArgumentError(
            f"out must be a file that can be written to, but {out} cannot be ({error.strerror}); choose another --out"
        ) from None


def _watched(name: str, rounds: int, console: Console) -> dict[str, Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(name, total=rounds + overhead.WARMUP)
        return overhead.measure(name, rounds=rounds, tick=lambda: progress.advance(bar))


def table(result: dict[str, Any]) -> Table:
    """Ratios, memory and medians of one case."""
    shown = Table(box=box.SIMPLE_HEAD, title=f"{result['case']}, {result['rounds']} rounds", title_justify="left")
    shown.add_column("figure", overflow="fold")
    shown.add_column("value", justify="right", no_wrap=True)
    for name, value in result["ratios"].items():
        shown.add_row(name, f"{value:.3f}")
    for name, value in result["memory"].items():
        shown.add_row(f"peak memory: {name}", f"{value:.2f}")
    for name, value in result["median_ms"].items():
        shown.add_row(f"median step: {name}", f"{value:.1f} ms")
    return shown
