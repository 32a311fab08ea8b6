"""``lowland bench comm``: steps on two processes with a network of limited bandwidth between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from lowland.bench.two_processes import driver, network
from lowland.bench.two_processes.case import CASES
from lowland.bench.two_processes.closed_form import OVERLAPS
from lowland.cli.bench.command import Timed
from lowland.cli.bench.figure import NAMES, draw
from lowland.core.errors import ArgumentError

HIDES = {"nothing": "nothing", "all": "what it can"}


@dataclass(kw_only=True)
class Comm(Timed):
    """Measure as ``bench parallel``, but between two network namespaces and at several bandwidths; draw a figure.

    The times stand beside those of the closed form of ``lowland simulate``. It needs Linux, root and iproute2. The
    figure is an SVG file with the name of the JSON file.

    Args:
        bandwidths: Bandwidths in Mbit/s, each > 0; 10000 hardly limits.
        delay: Latency of a packet in milliseconds, >= 0; a value above 0 needs the kernel's netem.
    """

    name = "comm"
    known = CASES

    bandwidths: tuple[float, ...] = driver.BANDWIDTHS
    delay: float = 0.0

    def check(self) -> None:
        """Refuse a machine without what the network needs, and a JSON file where the figure goes."""
        import lowland.report.drawing  # noqa: F401 - refuses where matplotlib is missing

        if self.file().suffix == ".svg":
            raise ArgumentError(f"out must be the JSON file, but is {self.out}, where the figure goes; choose a .json")
        network.rehearse(driver.checked(self.bandwidths), self.delay)

    def measure(self, case: str, tick: Callable[[], None]) -> dict[str, Any]:
        """See :meth:`Measurement.measure`."""
        bandwidths = tuple(self.bandwidths)
        return driver.measure_network(case, rounds=self.rounds, bandwidths=bandwidths, delay=self.delay, tick=tick)

    def total(self) -> int:
        """See :meth:`Measurement.total`."""
        return driver.network_rounds(self.rounds, self.bandwidths)

    def tables(self, result: dict[str, Any]) -> Iterable[Table | str]:
        """Ratios of one case, one row per bandwidth, and sentences; then the same by the closed form."""
        sentences = [sentence(result, other) for other in ("dp-sam", "sam")]
        return [_table(result), *sentences, _closed_form(result), level(result)]

    def machine(self) -> dict[str, Any]:
        """See :meth:`Measurement.machine`."""
        return driver.machine()

    def figure(self) -> Path:
        """The SVG file beside the JSON file."""
        return self.file().with_suffix(".svg")

    def write(self, results: Sequence[dict[str, Any]]) -> None:
        """Write the JSON file and the figure."""
        super().write(results)
        draw(results, self.figure())


def _table(result: dict[str, Any]) -> Table:
    """Ratios of one case, one row per bandwidth."""
    delay = f", {result['delay']:g} ms delay" if result["delay"] else ""
    title = f"{result['case']}, {result['bandwidths'][0]['rounds']} rounds at each bandwidth{delay}"
    ratios = ("sam / plain", "dp-sam / plain", "sampa / plain", "sampa / dp-sam")
    rows = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in ("Mbit/s", *ratios, "sampa's exchange not hidden"):
        rows.add_column(name, justify="right")
    for at in result["bandwidths"]:
        values = [f"{at['ratios'][name]:.3f}" for name in ratios]
        rows.add_row(f"{at['mbit']:g}", *values, f"{100 * at['exposed_share']['sampa']:.1f} % of the step")
    return rows


def _closed_form(result: dict[str, Any]) -> Table:
    """Measured times beside those of the closed form, which depend on how much of an exchange backward hides."""
    title = f"{result['case']}, ms of a step: measured; closed form if backward hides what it can, and if nothing"
    rows = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in ("Mbit/s", "dp-sam", "closed form", "sampa", "closed form"):
        rows.add_column(name, justify="right")
    for at in result["bandwidths"]:
        expected, values = at["closed_form"], []
        for name in ("dp-sam", "sampa"):
            between = sorted(expected[hides][name] for hides in OVERLAPS)
            values += [f"{at['median_ms'][name]:.0f}", " to ".join(f"{ms:.0f}" for ms in between)]
        rows.add_row(f"{at['mbit']:g}", *values)
    return rows


def level(result: dict[str, Any]) -> str:
    """The sentence that says where SAMPa is as fast as SAM on one process by the closed form."""
    clauses = []
    for hides, bandwidths in result["level"].items():
        where = f"at {' and '.join(f'{mbit:g}' for mbit in bandwidths)} Mbit/s" if bandwidths else "nowhere"
        clauses.append(f"{where} if backward hides {HIDES[hides]}")
    return f"{result['case']}: by the closed form {NAMES['sampa']} and {NAMES['sam']} are level {', '.join(clauses)}."


def sentence(result: dict[str, Any], other: str) -> str:
    """The sentence that lists the bandwidths at which SAMPa on two processes is faster than another variant."""
    faster = result["faster"][f"sampa than {other}"]
    listed = ", ".join(f"{mbit:g}" for mbit in faster["at"])
    where = f"at {listed} Mbit/s" if listed else "at no bandwidth measured"
    if len(faster["at"]) == len(result["bandwidths"]):
        where = "at every bandwidth measured"
    crossings = " and ".join(f"{mbit:g}" for mbit in faster["turns"])
    level = f"; the two are level at about {crossings} Mbit/s" if crossings else ""
    return f"{result['case']}: {NAMES['sampa']} is faster than {NAMES[other]} {where}{level}."
