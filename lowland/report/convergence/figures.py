"""The figures of a convergence study, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lowland.core.errors import MissingExtraError
from lowland.report.convergence.record import Study
from lowland.report.drawing import COLORS, MARKERS, NEUTRAL, STYLE, Look, canvas, label_axes, svg
from lowland.report.ends import name_ends

try:
    from matplotlib import rc_context
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator
except ImportError:
    raise MissingExtraError("matplotlib", "lab") from None

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST = 1e-9  # smaller values count as zero, and leave a figure of which they are the largest
RIGHT = 1.6  # the space for the names of the lines, in inches


class Line(NamedTuple):
    """A line of a figure: its name, its points and how it looks; ``marks`` draws a marker at every point."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    look: Look
    dashes: str = "-"
    marks: bool = True


def looks(study: Study) -> dict[str, Look]:
    """A color and a marker for each method; plain descent is dark grey."""
    found = {"plain": Look(NEUTRAL, "o", 0)}
    for name in dict.fromkeys(trace.method for trace in study.traces):
        n = len(found) - 1
        found.setdefault(name, Look(COLORS[n], MARKERS[n], n + 1))
    return found


def distances(study: Study, problem: str) -> str:
    """The distance to the minimizer after every step, both axes logarithmic; empty if all methods diverged."""
    look = looks(study)
    lines = [Line(t.method, t.steps, t.distances, look[t.method]) for t in study.of(problem) if t.steps]
    return _drawn(lines, "step", "distance to the minimizer", decades=4)


def lyapunov(study: Study, problem: str) -> str:
    """The Lyapunov function minus the minimum after every step; empty without exact gradients."""
    look = looks(study)
    lines = [Line(t.method, t.steps, t.gaps, look[t.method]) for t in study.of(problem) if t.gaps and not t.reason]
    return _drawn(lines, "step", "Lyapunov function minus minimum", decades=7)


def floors(study: Study) -> str:
    """Where the methods settle on ``||x||^2`` against the step; dotted lines are closed forms."""
    look, lines = looks(study), []
    for name in study.floor_slopes:
        own = [floor for floor in study.floors if floor.method == name]
        closed = [(floor.lr, floor.formula) for floor in own if floor.formula is not None]
        if study.floor_slopes[name] is not None:
            lines.append(Line(name, [f.lr for f in own], [f.distance for f in own], look[name]))
            lines.append(Line("", [lr for lr, _ in closed], [value for _, value in closed], look[name], ":", False))
    return _drawn(lines, "step size", "distance at which it settles")


def rates(study: Study, problem: str) -> str:
    """The mean squared gradient norm against the number of steps, with the bound; empty where there is no theorem."""
    look, lines = looks(study), []
    for name in study.rate_slopes.get(problem, {}):
        own = [rate for rate in study.rates if (rate.problem, rate.method) == (problem, name)]
        lines.append(Line(name, [r.steps for r in own], [r.mean_square for r in own], look[name]))
        bounded = [(rate.steps, rate.bound) for rate in own if rate.bound is not None]
        lines.append(Line("bound", [t for t, _ in bounded], [bound for _, bound in bounded], look[name], "--", False))
    return _drawn(lines, "number of steps T", "mean squared gradient norm")


def _drawn(lines: Sequence[Line], horizontal: str, vertical: str, decades: int = 9) -> str:
    """The figure of some lines on logarithmic axes, with up to so many decades below the top; empty with one place."""
    drawn = [line for line in lines if line.x and max(line.y) > LEAST]
    if len({x for line in drawn for x in line.x}) < 2:
        return ""
    with rc_context(STYLE):
        figure, axes = canvas(5.2, 3.3, left=0.62, right=RIGHT)
        for number, line in enumerate(drawn):
            _draw(axes, line, number)
        axes.set_xscale("log")
        axes.set_yscale("log", nonpositive="mask")
        _scale(axes, drawn, decades)
        label_axes(axes, horizontal, vertical)
        _name(figure, axes, [line for line in drawn if line.name])
        return svg(figure)


def _scale(axes: Axes, lines: Sequence[Line], decades: int) -> None:
    """Limit the axes, and name powers of ten; of few places on the horizontal axis, the places."""
    top = max(y for line in lines for y in line.y)
    least = min(y for line in lines for y in line.y if y > LEAST)
    axes.set_ylim(max(least / 1.5, top / 10**decades), top * 1.5)
    places = sorted({x for line in lines for x in line.x})
    axes.set_xlim(places[0], places[-1])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=6))
        axis.set_minor_formatter(NullFormatter())
    if len(places) <= 6:
        axes.set_xticks(places, [f"{x:.4g}" for x in places])
        axes.xaxis.set_minor_locator(NullLocator())


def _draw(axes: Axes, line: Line, number: int) -> None:
    every = max(1, len(line.x) // 5) if len(line.x) > 10 else 1
    axes.plot(
        line.x,
        line.y,
        color=line.look.color,
        ls=line.dashes,
        lw=1.5 if line.dashes == "-" else 1.2,
        marker=line.look.marker if line.marks else "",
        ms=4.5,
        markevery=(number % every, every),
    )


def _name(figure: Figure, axes: Axes, lines: Sequence[Line]) -> None:
    """Write the names of lines at their ends; what is too small to be drawn ends at the lower edge."""
    names = [(line.name, line.look.color) for line in lines]
    name_ends(figure, axes, names, [(line.x[-1], max(line.y[-1], LEAST / 1e3)) for line in lines])
