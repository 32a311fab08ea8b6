"""The figures of a plan, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lowland.core.errors import MissingExtraError
from lowland.report.drawing import (
    COLORS,
    GREY,
    INK,
    LINE_PT,
    MARKERS,
    MUTED,
    NEUTRAL,
    PAPER,
    STYLE,
    Look,
    canvas,
    label_axes,
    svg,
)
from lowland.report.ends import name_ends
from lowland.report.placing import Box, around, beside_points
from lowland.report.plans.record import LineRecord, PlanRecord, PredictionRecord, SurveyRecord

try:
    from matplotlib import rc_context
    from matplotlib.ticker import LogLocator, NullFormatter
except ImportError:
    raise MissingExtraError("matplotlib", "lab") from None

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOLLOWED = ("plain", "sam", "sampa", "micro-sam", "looksam")  # the methods whose layouts are compared
PARTS = {  # of a step: the words, and the color
    "passes": ("passes", NEUTRAL),
    "busy": ("busy neighbors", COLORS[4]),
    "exchange": ("exchanges", COLORS[0]),
    "own": ("arithmetic and update", COLORS[1]),
}
ROW = 0.2  # the height of a row, in inches
LETTER = 0.085  # the width of a letter, in inches


def parts(plan: PlanRecord) -> str:
    """Where the time of a step goes: a stacked bar for the fastest layout of every method."""
    fastest = list(plan.fastest().values())
    with rc_context(STYLE):
        figure, axes = _rows([f"{one.method}, {one.shown}" for one in fastest], width=9.2)
        for place, one in enumerate(fastest):
            _stack(axes, place, one)
        axes.axvline(0, color=MUTED, lw=0.8)
        label_axes(axes, "ms a step", "")
        shown = [name for name in PARTS if any(getattr(one, name) for one in fastest)]
        _legend(axes, [(PARTS[name][0], Look(PARTS[name][1], "s", 0)) for name in shown])
        return svg(figure)


def _stack(axes: Axes, place: int, one: PredictionRecord) -> None:
    """One bar; parts below zero begin left of zero, so that the bar ends at the time of the step."""
    start = 1e3 * sum(min(getattr(one, name), 0.0) for name in PARTS)
    left = 0.0
    for name, (_, color) in PARTS.items():
        time = 1e3 * getattr(one, name)
        if time < 0:
            axes.barh(place, time, left=left, height=0.84, facecolor="none", edgecolor=color, lw=1.2, zorder=3)
            left += time
        else:
            axes.barh(place, time, left=start, height=0.62, color=color)
            start += time
    error = 1e3 * (one.error or 0.0) * one.seconds
    axes.errorbar(1e3 * one.seconds, place, xerr=error, color=INK, elinewidth=1, capsize=2)


def followed(plan: PlanRecord) -> dict[str, Look]:
    """The methods whose layouts are compared, each with a color and a marker."""
    names = [name for name in plan.fastest() if name.partition(":")[0] in FOLLOWED]
    names.sort(key=lambda name: FOLLOWED.index(name.partition(":")[0]))
    others = [name for name in names if name != "plain"][: len(COLORS)]
    found = {"plain": Look(NEUTRAL, "o", 0)} if "plain" in names else {}
    return found | {name: Look(COLORS[n], MARKERS[n], n + 1) for n, name in enumerate(others)}


def by_layout(plan: PlanRecord) -> str:
    """The time of a step in every layout, for the methods of :func:`followed`; empty with one layout."""
    look = followed(plan)
    shown = [one for one in plan.predictions if one.method in look]
    labels = {one.shown: one.layout for one in shown}
    if len(labels) < 2:
        return ""
    order = sorted(
        labels, key=lambda text: (labels[text].ranks, labels[text].probe, -(labels[text].micro_batch or 1e9))
    )
    with rc_context(STYLE):
        figure, axes = _rows(order, width=9.2, height=max(ROW, 0.075 * (len(look) + 1)))
        shift = {name: 0.14 * (n - (len(look) - 1) / 2) for n, name in enumerate(look)}
        for one in shown:
            place = order.index(one.shown) + shift[one.method]
            _mark(axes, 1e3 * one.seconds, place, look[one.method])
            error = 1e3 * (one.error or 0.0) * one.seconds
            axes.errorbar(1e3 * one.seconds, place, xerr=error, color=look[one.method].color, elinewidth=0.9)
        axes.set_xlim(left=0)
        label_axes(axes, "ms a step", "")
        _legend(axes, list(look.items()))
        return svg(figure)


def lines(survey: SurveyRecord) -> str:
    """The fitted times of a pass against the examples of a rank, alone, beside others, and in every layout."""
    named = _lines(survey)
    with rc_context(STYLE):
        figure, axes = canvas(5.2, 3.3, left=0.62, right=1.9)
        names, ends = [], []
        for number, (name, line, most) in enumerate(named):
            color = NEUTRAL if number == 0 else COLORS[number - 1]
            points = [(most * n / 20, 1e3 * (line.base + line.slope * most * n / 20)) for n in range(21)]
            spread = [(line.error or 0.0) * y for _, y in points]
            x, y = [p[0] for p in points], [p[1] for p in points]
            low, high = ([v + sign * s for v, s in zip(y, spread, strict=True)] for sign in (-1, 1))
            axes.fill_between(x, low, high, color=color, alpha=0.13, lw=0)
            axes.plot(x, y, color=color, lw=1.6)
            ends.append(points[-1])
            names.append((name, color))
        axes.set_xlim(0, survey.examples)
        axes.set_ylim(bottom=0)
        label_axes(axes, "examples of a rank", "ms a gradient")
        name_ends(figure, axes, names, ends, inside=True)
        return svg(figure)


def _lines(survey: SurveyRecord) -> list[tuple[str, LineRecord, float]]:
    """The lines of a gradient at the weights with their names, and the most examples that a rank has."""
    found = [("alone", survey.quiet.lines["again"], float(survey.examples))]
    if survey.ranks > 1:
        found.append(("beside others", survey.busy.lines["again"], float(survey.examples)))
    for rates in survey.rates:
        layout = rates.layout
        mesh = ", ".join(f"{n}={size}" for n, size in (("probe", layout.probe), ("data", layout.data)) if size > 1)
        if mesh:
            found.append((mesh, rates.lines["again"], survey.examples / layout.data))
    return found[: len(COLORS) + 1]


def memory(plan: PlanRecord) -> str:
    """The peak memory of a rank against the time of a step; empty where memory is not known."""
    known = [one for one in plan.predictions if one.memory is not None]
    if not known:
        return ""
    look, fastest = followed(plan), plan.fastest()
    with rc_context(STYLE):
        figure, axes = canvas(9.2, 4.2, left=0.72, right=0.3)
        for one in known:
            if one.method in look and one is not fastest[one.method]:
                _mark(axes, *_point(one), look[one.method], hollow=True)
        shown = [one for one in fastest.values() if one.memory is not None]
        for one in sorted(shown, key=lambda one: one.method in look):
            _mark(axes, *_point(one), look.get(one.method, Look(GREY, "o", 9)))
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(0.08)
        label_axes(axes, "ms a step", "MB memory of a rank")
        named = [one for one in shown if one.method in look]
        others = [one for one in shown if one.method not in look]
        _name_points(figure, axes, [*named, *others[: max(12 - len(named), 0)]], look)
        return svg(figure)


def _point(one: PredictionRecord) -> tuple[float, float]:
    return 1e3 * one.seconds, (one.memory or 0.0) / 1e6


def _mark(axes: Axes, x: float, y: float, look: Look, *, hollow: bool = False) -> None:
    face = PAPER if hollow else look.color
    axes.plot([x], [y], ls="", marker=look.marker, ms=3.8 if hollow else 5.5, mfc=face, mec=look.color, mew=1.1)


def _rows(labels: Sequence[str], width: float, height: float = ROW) -> tuple[Figure, Axes]:
    """An empty figure with a named row for each label, the first on top."""
    space = min(LETTER * max(map(len, labels)) + 0.15, 0.55 * width)
    figure, axes = canvas(width, height * len(labels) + 0.95, left=space, right=0.25)
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    return figure, axes


def _legend(axes: Axes, entries: Sequence[tuple[str, Look]]) -> None:
    """Marks with their words in a line above the axes."""
    marks = [
        axes.plot([], [], ls="", marker=look.marker, ms=6, color=look.color, label=name)[0] for name, look in entries
    ]
    frame: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "borderpad": 0}
    axes.legend(handles=marks, ncols=len(marks), handletextpad=0.2, columnspacing=1.4, **frame)


def _name_points(figure: Figure, axes: Axes, shown: Sequence[PredictionRecord], look: dict[str, Look]) -> None:
    """Write the methods beside their points."""
    figure.draw_without_rendering()
    unit = figure.dpi / 72
    points = [(float(x), float(y)) for x, y in axes.transData.transform([_point(one) for one in shown])]
    sizes = [(0.62 * 9.5 * unit * len(one.method), LINE_PT * unit) for one in shown]
    frame = Box(*axes.get_window_extent().extents)
    back = axes.transData.inverted().transform
    hollow = [around(x, y, 6 * unit, 6 * unit) for x, y in points]
    for one, point, label in zip(
        shown, points, beside_points(points, sizes, frame=frame, unit=unit, bars=hollow), strict=True
    ):
        color = look[one.method].color if one.method in look else MUTED
        if label.leader is not None:
            axes.plot(*zip(back(point), back(label.leader), strict=True), color=color, lw=0.6, alpha=0.7)
        x, y = back((label.x, label.y))
        axes.text(x, y, one.method, color=color, ha=label.side, va="center", parse_math=False)
