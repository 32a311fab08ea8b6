"""The figures of simulated trainings, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lowland.core.errors import MissingExtraError
from lowland.report.drawing import (
    COLORS,
    GREY,
    INK,
    MARKERS,
    MUTED,
    NEUTRAL,
    STYLE,
    Look,
    canvas,
    label_axes,
    svg,
)
from lowland.report.ends import name_ends
from lowland.report.planner.record import Kept, Point, Scaling
from lowland.report.values import minus

try:
    from matplotlib import rc_context
    from matplotlib.ticker import FuncFormatter, NullFormatter
except ImportError:
    raise MissingExtraError("matplotlib", "lab") from None

if TYPE_CHECKING:
    pass

LEFT, RIGHT = 0.85, 1.45  # the space for numbers and for the names of the lines, in inches
LEVELS = (1.0, 1.02, 1.1, 1.25, 1.5, 2.0, 3.0)  # of the figure of two devices


class Curve(NamedTuple):
    """A line of a figure; ``marks`` draws a marker at every point, ``name`` is empty for a line without a name."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    look: Look
    dashes: str = "-"
    marks: bool = True


def looks(study: Scaling) -> dict[str, Look]:
    """A color and a marker for each method; SAM is dark grey."""
    found: dict[str, Look] = {}
    for name in study.methods:
        n = len([look for look in found.values() if look.number])
        colored = Look(COLORS[n], MARKERS[n], n + 1) if n < len(COLORS) else Look(GREY, "o", 9)
        found[name] = Look(NEUTRAL, "o", 0) if name == "sam" else colored
    return found


def efficiency(study: Scaling, kept: Kept) -> str:
    """Efficiency against devices: simulated with marks, in closed form dashed."""
    curves = []
    for name, look in looks(study).items():
        points = study.of(name, kept)
        x = [p.devices for p in points]
        curves.append(Curve("", x, [100 * p.ideal for p in points], look, "--", False))
        curves.append(Curve(name, x, [100 * p.efficiency(study.examples) for p in points], look))
    return _drawn(curves, "devices", "efficiency, %", log_y=False)


def step_seconds(study: Scaling) -> str:
    """Milliseconds of a simulated step against devices, with one global batch."""
    curves = []
    for name, look in looks(study).items():
        points = study.of(name, "global")
        curves.append(Curve(name, [p.devices for p in points], [1e3 * p.simulated for p in points], look))
    return _drawn(curves, "devices", "ms per step")


def gains(study: Scaling) -> str:
    """How many times faster than data-parallel SAM's a simulated step is, against devices, with one global batch."""
    sam = {p.devices: p.simulated for p in study.of("sam", "global")}
    curves = []
    for name, look in looks(study).items():
        points = [p for p in study.of(name, "global") if p.devices in sam and name != "sam"]
        y = [sam[p.devices] / p.simulated for p in points]
        curves.append(Curve(name, [p.devices for p in points], y, look))
    return _drawn(curves, "devices", "times as fast as SAM", log_y=False)


def costs(study: Scaling) -> str:
    """Device-hours against hours of the training with one global batch; each mark is a number of devices."""
    curves = []
    for name, look in looks(study).items():
        points = sorted(study.of(name, "global"), key=_hours, reverse=True)
        curves.append(Curve(name, [_hours(p) for p in points], [p.device_hours for p in points], look))
    return _drawn(curves, "hours of the training", "device-hours", turned=True)


def bases(study: Scaling) -> str:
    """The base of a pass above which SAMPa is faster than data-parallel SAM, against devices."""
    curves = []
    for n, base in enumerate(study.bases):
        look = Look(COLORS[n % len(COLORS)], MARKERS[n % len(MARKERS)], n + 1)
        curves.append(Curve(base.link, base.devices, [1e3 * b for b in base.bases], look))
    devices = [n for base in study.bases for n in base.devices]
    own = Curve("this pass", [min(devices), max(devices)], [1e3 * study.base] * 2, Look(NEUTRAL, "", 0), ":", False)
    return _drawn([*curves, own], "devices", "base of a pass, ms", log_y=False)


def pair(study: Scaling) -> str:
    """Two devices: how much faster SAMPa is than data-parallel SAM, and where it is slower than SAM on one device."""
    grid = study.pair
    with rc_context(STYLE):
        figure, axes = canvas(5.2, 3.5, left=LEFT, right=RIGHT)
        axes.set_xscale("log")  # before the labels of the lines, for which gaps are cut
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(_plain))
        shown = [level for level in LEVELS if _between(level, grid.over_data)]
        bandwidths = [b / 1e9 for b in grid.bandwidths]
        if shown:
            lines = axes.contour(grid.batches, bandwidths, grid.over_data, shown, colors=[COLORS[0]], linewidths=1.2)
            axes.clabel(lines, fmt=lambda level: f"{level:g}×", fontsize=8.5)
        if _between(1.0, grid.over_one):
            axes.contourf(grid.batches, bandwidths, grid.over_one, [0.0, 1.0], colors=[GREY], alpha=0.3)
            axes.contour(grid.batches, bandwidths, grid.over_one, [1.0], colors=[NEUTRAL], linewidths=1.5)
        for mark in study.marks:
            axes.axhline(mark.bandwidth / 1e9, color=MUTED, lw=0.7, ls=(0, (2, 3)))
        label_axes(axes, "examples of a step", "GB/s between the two devices")
        ends = [(axes.get_xlim()[1], m.bandwidth / 1e9) for m in study.marks]
        name_ends(figure, axes, [(m.title, INK) for m in study.marks], ends)
        return svg(figure)


def _between(level: float, rows: Sequence[Sequence[float]]) -> bool:
    """Whether a level is inside the range of a grid."""
    values = [value for row in rows for value in row]
    return min(values) < level < max(values)


def _plain(value: float, _: object) -> str:
    """A number without an exponent."""
    return minus(f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}")


def _hours(point: Point) -> float:
    return point.hours


def _drawn(
    curves: Sequence[Curve],
    horizontal: str,
    vertical: str,
    *,
    log_y: bool = True,
    turned: bool = False,
) -> str:
    """A figure of curves with their names at the right; a turned one has its smallest x there."""
    drawn = [curve for curve in curves if curve.x]
    if len({x for curve in drawn for x in curve.x}) < 2:
        return ""
    with rc_context(STYLE):
        figure, axes = canvas(5.2, 3.5, left=LEFT, right=RIGHT)
        for curve in drawn:
            axes.plot(
                curve.x, curve.y, color=curve.look.color, ls=curve.dashes, lw=1.5 if curve.dashes == "-" else 1.1,
                marker=curve.look.marker if curve.marks else "", ms=3.8,
            )  # fmt: skip
        axes.set_xscale("log")
        if log_y:
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        places = [x for curve in drawn for x in curve.x]
        axes.set_xlim(min(places) / 1.05, max(places) * 1.05)
        if turned:
            axes.invert_xaxis()
        axes.xaxis.set_minor_formatter(NullFormatter())
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(_plain))
        label_axes(axes, horizontal, vertical)
        named = [curve for curve in drawn if curve.name]
        names = [(curve.name, curve.look.color) for curve in named]
        name_ends(figure, axes, names, [(axes.get_xlim()[1], curve.y[-1]) for curve in named])
        return svg(figure)
