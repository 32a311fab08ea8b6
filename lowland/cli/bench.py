"""``lowland bench``: measure step times, memory and traffic on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lowland.bench import overhead
from lowland.bench.two_processes import driver as parallel
from lowland.bench.two_processes import network
from lowland.core.errors import ArgumentError, UnknownNameError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {"dp-sam": "data-parallel SAM on two", "sampa": "SAMPa on two", "sam": "SAM on one", "plain": "plain on one"}
DRAWN = {"sampa": (0, "s", "-"), "dp-sam": (1, "^", "-"), "sam": (2, "D", "--")}  # color, marker and dashes


@dataclass(kw_only=True)
class Bench:
    """Measure what methods cost here; print ratios and write JSON.

    Args:
        what: overhead: step times of SAM, LookSAM and SAMPa next to bare gradients and to pytorch_optimizer's SAM
            (where it is installed), interleaved, in one process on one thread; of gradients for some of the tensors,
            as SL-SAM and ESAM ask for them, next to full ones; and peak memory. parallel: steps on two processes of one
            thread each (data-parallel SAM, and SAMPa with its gradients computed at once, exchanged through memory and
            by messages) next to plain and SAM on one, and what they exchange. comm: the same between two network
            namespaces, at several bandwidths (Linux, as root, with iproute2), and a figure beside the JSON file.
        cases: What to measure on; left out, all cases there are.
        rounds: Rounds that count, >= 5; every variant takes one step a round.
        bandwidths: For comm: Mbit/s, each > 0; 10000 is next to no limit.
        delay: For comm: milliseconds that a packet is under way, >= 0; above 0 it takes the kernel's netem.
        out: The JSON file; left out, bench-overhead.json, bench-parallel.json or bench-comm.json.
    """

    what: tyro.conf.Positional[Literal["overhead", "parallel", "comm"]] = "overhead"
    cases: tuple[str, ...] = ()
    rounds: int = 60
    bandwidths: tuple[float, ...] = parallel.BANDWIDTHS
    delay: float = 0.0
    out: Path | None = None

    def run(self, console: Console, argv: Sequence[str]) -> int:
        """Measure, print, write."""
        names = self._names()
        out = self.out or Path(f"bench-{self.what}.json")
        figure = out.with_suffix(".svg") if self.what == "comm" else None
        self._check_network(out)
        for path in filter(None, (out, figure)):
            _check_writable(path)  # fail before the minutes of measuring
        results = [self._watched(name, console) for name in names]
        for result in results:
            for renderable in shown_as(self.what, result):
                console.print(renderable, highlight=False)
        machine = overhead.machine() if self.what == "overhead" else parallel.machine()
        out.write_text(json.dumps({"machine": machine, "cases": results}, indent=2) + "\n")
        if figure is not None:
            draw(results, figure)
        for path in filter(None, (out, figure)):
            console.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)
        return 0

    def _names(self) -> tuple[str, ...]:
        known: Mapping[str, Any] = overhead.CASES if self.what == "overhead" else parallel.CASES
        for name in self.cases:
            if name not in known:
                raise UnknownNameError("case", name, known)
        return self.cases or tuple(known)

    def _check_network(self, out: Path) -> None:
        if self.what == "comm":
            import lowland.report.drawing  # noqa: F401 - refuses where matplotlib is missing

            if out.suffix == ".svg":
                raise ArgumentError(f"out must be the JSON file, but is {out}, where the figure goes; choose a .json")
            network.rehearse(parallel.checked(self.bandwidths), self.delay)
        elif (self.bandwidths, self.delay) != (parallel.BANDWIDTHS, 0.0):
            raise ArgumentError(
                f"bandwidths and delay are for comm, but are given for {self.what}; leave them out, or run: "
                "lowland bench comm"
            )

    def _watched(self, name: str, console: Console) -> dict[str, Any]:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        total = {
            "overhead": self.rounds + overhead.WARMUP,
            "parallel": self.rounds + parallel.WARMUP,
            "comm": parallel.network_rounds(self.rounds, self.bandwidths),
        }
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task(name, total=total[self.what])
            return self._measure(name, lambda: progress.advance(bar))

    def _measure(self, name: str, tick: Callable[[], None]) -> dict[str, Any]:
        if self.what == "overhead":
            return overhead.measure(name, rounds=self.rounds, tick=tick)
        if self.what == "parallel":
            return parallel.measure(name, rounds=self.rounds, tick=tick)
        bandwidths = tuple(self.bandwidths)
        return parallel.measure_network(name, rounds=self.rounds, bandwidths=bandwidths, delay=self.delay, tick=tick)


def _check_writable(out: Path) -> None:
    existed = out.exists()
    try:
        out.open("a").close()
        if not existed:
            out.unlink()  # leave no empty file if the measurement fails later
    except OSError as error:
        raise ArgumentError(
            f"out must be a file that can be written to, but {out} cannot be ({error.strerror}); choose another --out"
        ) from None


def shown_as(what: str, result: dict[str, Any]) -> list[Table | str]:
    """The table of one case, and for ``comm`` the sentences below the table."""
    if what == "overhead":
        return [table(result)]
    if what == "parallel":
        return [parallel_table(result)]
    return [comm_table(result), *(f"{sentence(result, other)}" for other in ("dp-sam", "sam"))]


def table(result: dict[str, Any]) -> Table:
    """Ratios, memory and medians of one case."""
    rows = _figures(result)
    for name, value in result["memory"].items():
        rows.add_row(f"peak memory: {name}", f"{value:.2f}")
    return _with_medians(rows, result)


def parallel_table(result: dict[str, Any]) -> Table:
    """Ratios, traffic and medians of one case; plain and SAM run on one process, the others on two."""
    rows = _figures(result)
    for name, value in result["bytes"].items():
        if value:
            rows.add_row(f"a rank gives into exchanges in a step: {name}", f"{value / 1e6:.3f} MB")
    for name, value in result["wire_bytes"].items():
        if result["bytes"][name] and value is not None:
            rows.add_row(f"leaves a rank's network device in a step: {name}", f"{value / 1e6:.3f} MB")
    exposed = f"{result['exposed_ms']:.1f} ms, {100 * result['exposed_share']:.1f} %"
    rows.add_row("of the exchange not hidden behind backward: sampa", exposed)
    return _with_medians(rows, result)


def comm_table(result: dict[str, Any]) -> Table:
    """Ratios of one case, one row per bandwidth."""
    delay = f", {result['delay']:g} ms delay" if result["delay"] else ""
    title = f"{result['case']}, {result['bandwidths'][0]['rounds']} rounds at each bandwidth{delay}"
    ratios = ("sam / plain", "dp-sam / plain", "sampa / plain", "sampa / dp-sam")
    rows = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in ("Mbit/s", *ratios, "sampa's exchange not hidden"):
        rows.add_column(name, justify="right")
    for at in result["bandwidths"]:
        values = [f"{at['ratios'][name]:.3f}" for name in ratios]
        rows.add_row(f"{at['mbit']:g}", *values, f"{100 * at['exposed_share']:.1f} % of the step")
    return rows


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


def _figures(result: dict[str, Any]) -> Table:
    rows = Table(box=box.SIMPLE_HEAD, title=f"{result['case']}, {result['rounds']} rounds", title_justify="left")
    rows.add_column("figure", overflow="fold")
    rows.add_column("value", justify="right", no_wrap=True)
    for name, value in result["ratios"].items():
        rows.add_row(name, f"{value:.3f}")
    return rows


def _with_medians(rows: Table, result: dict[str, Any]) -> Table:
    for name, value in result["median_ms"].items():
        rows.add_row(f"median step: {name}", f"{value:.1f} ms")
    return rows


def draw(found: Sequence[dict[str, Any]], out: Path) -> None:
    """Draw step time against bandwidth as SVG, a panel for each case.

    Args:
        found: The results of :func:`lowland.bench.two_processes.driver.measure_network`.
        out: The SVG file to write.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from lowland.report.drawing import STYLE

    # Draw text as curves: the viewer of the file may lack the font.
    with rc_context({**STYLE, "svg.fonttype": "path"}):
        figure = Figure(figsize=(5.2 * len(found), 3.7), layout="constrained")
        for result, axes in zip(found, figure.subplots(1, len(found), squeeze=False)[0], strict=True):
            _panel(axes, result)
        _save(figure, out)


def _panel(axes: Axes, result: dict[str, Any]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    from lowland.report.drawing import COLORS, NEUTRAL

    bandwidths = [at["mbit"] for at in result["bandwidths"]]
    for name, (color, marker, dashes) in DRAWN.items():
        times = [at["ratios"][f"{name} / plain"] for at in result["bandwidths"]]
        axes.plot(bandwidths, times, color=COLORS[color], marker=marker, ls=dashes, lw=1.8, ms=5.5, label=NAMES[name])
    axes.axhline(1, color=NEUTRAL, ls=":", lw=1.4, label=NAMES["plain"])
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.set_xticks(bandwidths, [f"{mbit:,g}" if mbit < 1e6 else f"{mbit:g}" for mbit in bandwidths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(result["case"], loc="left")
    axes.set_xlabel("bandwidth, Mbit/s")
    axes.set_ylabel("time per step, × plain on one process")
    axes.legend()


def _save(figure: Figure, out: Path) -> None:
    figure.savefig(out, format="svg", metadata={"Date": None})
