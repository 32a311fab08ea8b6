"""``lowland bench parallel``: steps on two processes of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from lowland.bench.two_processes import driver
from lowland.bench.two_processes.case import CASES
from lowland.cli.bench.command import Timed
from lowland.cli.bench.rows import ratios, with_medians


@dataclass(kw_only=True)
class Parallel(Timed):
    """Measure steps on two processes of one thread each, next to two plain steps at once; print ratios, write JSON.

    On two processes run data-parallel SAM, and SAMPa with its gradients computed at once and exchanged through memory
    and by messages. The first ratios compare them with two plain steps at once, one on each process, that exchange
    nothing: about the least that two gradients of a batch can take on this machine. Plain and SAM on one process
    stand beside them. The bytes that are exchanged are counted, and the time is measured that a rank waits for them.
    """

    name = "parallel"
    known = CASES

    def measure(self, case: str, tick: Callable[[], None]) -> dict[str, Any]:
        """See :meth:`Measurement.measure`."""
        return driver.measure(case, rounds=self.rounds, tick=tick)

    def total(self) -> int:
        """See :meth:`Measurement.total`."""
        return self.rounds + driver.WARMUP

    def tables(self, result: dict[str, Any]) -> Iterable[Table | str]:
        """The headline; ratios, traffic and medians of one case; plain and SAM run on one process, others on two."""
        rows = ratios(result)
        for name, value in result["bytes"].items():
            if value:
                rows.add_row(f"gradients that a rank sends in a step: {name}", f"{value / 1e6:.3f} MB")
        for name, value in result["wire_bytes"].items():
            if result["bytes"][name] and value is not None:
                rows.add_row(f"leaves a rank's network device in a step: {name}", f"{value / 1e6:.3f} MB")
        for name, value in result["exposed_ms"].items():
            exposed = f"{value:.1f} ms, {100 * result['exposed_share'][name]:.1f} %"
            rows.add_row(f"of the exchange not hidden behind backward: {name}", exposed)
        return [headline(result), saved(result), with_medians(rows, result)]

    def machine(self) -> dict[str, Any]:
        """See :meth:`Measurement.machine`."""
        return driver.machine()


def headline(result: dict[str, Any]) -> str:
    """The sentence that compares the variants on two processes with two plain steps at once."""
    names = {
        "sampa": "SAMPa",
        "sampa-messages": "SAMPa by messages",
        "dp-sam": "data-parallel SAM",
        "dp-plain": "data-parallel plain training",
    }
    *most, last = [f"{title} {result['ratios'][f'{name} / plain-twice']:.2f}" for name, title in names.items()]
    times = f"{', '.join(most)} and {last} times"
    return f"{result['case']}: on two processes, {times} what two plain steps at once take with nothing exchanged."


def saved(result: dict[str, Any]) -> str:
    """The sentence that compares what SAMPa saves with the closed form of a link that takes no time."""
    measured = result["median_ms"]["dp-sam"] - result["median_ms"]["sampa"]
    base = result["closed_form"]["base_ms"]
    return (
        f"{result['case']}: a step of data-parallel SAM minus one of SAMPa is {measured:+.1f} ms, and {base:+.1f} ms "
        "by the closed form: the part of a gradient that does not depend on the number of examples."
    )
