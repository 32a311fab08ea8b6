"""``lowland bench plan``: predicted steps beside measured ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from lowland.bench import overhead
from lowland.bench.planning import held
from lowland.cli.bench.command import Timed


@dataclass(kw_only=True)
class Plan(Timed):
    """Hold the planner's predictions against measured steps; print the table, write JSON.

    On one, two and four processes of one thread each, every method's step is predicted from single passes and from the
    method's arithmetic, and is measured in the same rounds. Bytes and memory are compared, too, and whether the layout
    that is predicted to be the fastest is.
    """

    name = "plan"
    known = held.names()
    rounds: int = 20

    def measure(self, case: str, tick: Callable[[], None]) -> dict[str, Any]:
        """See :meth:`Measurement.measure`."""
        return held.hold(case, rounds=self.rounds, tick=tick)

    def total(self) -> int:
        """See :meth:`Measurement.total`."""
        return held.STEPS * len(held.PROCESSES)

    def tables(self, result: dict[str, Any]) -> Iterable[Table | str]:
        """Predicted and measured steps of one case, and how well the predictions hold."""
        rows = Table(box=box.SIMPLE_HEAD, title=f"{result['case']}, ms", title_justify="left", pad_edge=False)
        for title in ("method", "layout", "predicted", "simulated", "measured", "error", "MB sent", "counted"):
            rows.add_column(title, justify="left" if title in ("method", "layout") else "right", no_wrap=True)
        for row in (held.Row(**row) for row in result["rows"]):
            times = (f"{1e3 * time:.2f}" for time in (row.predicted, row.simulated, row.measured))
            sent = (f"{size / 1e6:.3f}" for size in (row.sent, row.counted))
            rows.add_row(row.method, row.layout, *times, f"{100 * row.error:+.1f} %", *sent)
        return [rows, said(result)]

    def machine(self) -> dict[str, Any]:
        """See :meth:`Measurement.machine`."""
        return overhead.machine()


def said(result: dict[str, Any]) -> str:
    """How well the predictions of one case hold, in a sentence."""
    near = [ratio <= 1 + held.NEAR for ratio in result["chosen"].values()]
    return (
        f"{result['case']}: the median error of times is {100 * result['median']:.1f} %, and "
        f"{100 * result['within']:.0f} % of them lie within 15 %; that of the simulator is "
        f"{100 * result['simulated']:.1f} %; bytes are "
        f"{'exact' if result['exact'] else 'not exact'}; the largest error of memory is "
        f"{100 * result['memory_error']:.1f} %; for {sum(near)} of {len(near)} methods the layout that was predicted "
        f"to be the fastest is, or takes at most {100 * held.NEAR:.0f} % longer."
    )
