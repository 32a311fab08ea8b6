"""``lowland bench overhead``: what a step costs beside its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from lowland.bench import overhead
from lowland.cli.bench.command import Timed
from lowland.cli.bench.rows import ratios, with_medians


@dataclass(kw_only=True)
class Overhead(Timed):
    """Measure step times of SAM, LookSAM and SAMPa next to bare gradients; print ratios and write JSON.

    The variants take their steps in turn, in one process on one thread; pytorch_optimizer's SAM is one of them where it
    is installed. Gradients for some of the tensors, as SL-SAM and ESAM ask for them, stand next to full ones. Peak
    memory is measured, too.
    """

    name = "overhead"
    known = overhead.CASES

    def measure(self, case: str, tick: Callable[[], None]) -> dict[str, Any]:
        """See :meth:`Measurement.measure`."""
        return overhead.measure(case, rounds=self.rounds, tick=tick)

    def total(self) -> int:
        """See :meth:`Measurement.total`."""
        return self.rounds + overhead.WARMUP

    def tables(self, result: dict[str, Any]) -> Iterable[Table]:
        """Ratios, memory and medians of one case."""
        rows = ratios(result)
        for name, value in result["memory"].items():
            rows.add_row(f"peak memory: {name}", f"{value:.2f}")
        return [with_medians(rows, result)]

    def machine(self) -> dict[str, Any]:
        """See :meth:`Measurement.machine`."""
        return overhead.machine()
