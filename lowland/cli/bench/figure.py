"""The figure of ``lowland bench comm``: step time against bandwidth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {"dp-sam": "data-parallel SAM on two", "sampa": "SAMPa on two", "sam": "SAM on one", "plain": "plain on one"}
DRAWN = {"sampa": (0, "s", "-"), "dp-sam": (1, "^", "-"), "sam": (2, "D", "--")}  # color, marker and dashes


def draw(results: Sequence[dict[str, Any]], out: Path) -> None:
    """Draw step time against bandwidth as SVG, a panel for each case.

    Args:
        results: The results of :func:`lowland.bench.two_processes.driver.measure_network`.
        out: The SVG file to write.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from lowland.report.drawing import STYLE

    # Draw text as curves: the viewer of the file may lack the font.
    with rc_context({**STYLE, "svg.fonttype": "path"}):
        figure = Figure(figsize=(5.2 * len(results), 3.7), layout="constrained")
        for result, axes in zip(results, figure.subplots(1, len(results), squeeze=False)[0], strict=True):
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
