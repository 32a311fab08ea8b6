"""``lowland bench parallel``: steps on two processes of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from lowland.bench.two_processes import driver
from lowland.cli.bench.command import Timed
from lowland.cli.bench.rows import ratios, with_medians


@dataclass(kw_only=True)
class Parallel(Timed):
    """Measure steps on two processes of one thread each, next to plain and SAM on one; print ratios and write JSON.

    On two processes run data-parallel SAM, and SAMPa with its gradients computed at once and exchanged through memory
    and by messages. The bytes that they exchange are counted.
    """

    name = "parallel"
    known = driver.CASES

    def measure(self, case: str, tick: Callable[[], None]) -> dict[str, Any]:
        """See :meth:`Measurement.measure`."""
        return driver.measure(case, rounds=self.rounds, tick=tick)

    def total(self) -> int:
        """See :meth:`Measurement.total`."""
        return self.rounds + driver.WARMUP

    def tables(self, result: dict[str, Any]) -> Iterable[Table]:
        """Ratios, traffic and medians of one case; plain and SAM run on one process, the others on two."""
        rows = ratios(result)
        for name, value in result["bytes"].items():
            if value:
                rows.add_row(f"gradients that a rank sends in a step: {name}", f"{value / 1e6:.3f} MB")
        for name, value in result["wire_bytes"].items():
            if result["bytes"][name] and value is not None:
                rows.add_row(f"leaves a rank's network device in a step: {name}", f"{value / 1e6:.3f} MB")
        exposed = f"{result['exposed_ms']:.1f} ms, {100 * result['exposed_share']:.1f} %"
        rows.add_row("of the exchange not hidden behind backward: sampa", exposed)
        return [with_medians(rows, result)]

    def machine(self) -> dict[str, Any]:
        """See :meth:`Measurement.machine`."""
        return driver.machine()
