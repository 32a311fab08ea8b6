"""The figures of survival: the headline metric against the bits of the weights, and against the level of noise."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lowland.core.errors import MissingExtraError
from lowland.report.columns import value_text
from lowland.report.curves import Line, label_ends
from lowland.report.drawing import LINE_PT, STYLE, Look, break_label, canvas, label_axes, score_title, svg
from lowland.report.summary import Measured, Row
from lowland.report.values import number_format
from lowland.runs.statistics import Estimate

try:
    from matplotlib import rc_context
except ImportError:
    raise MissingExtraError("matplotlib", "lab") from None

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUP = "survival"
# The distance between the marks of two contestants, and between the outermost ones at most, in steps of the horizontal
# axis.
APART, WIDTH = 0.045, 0.36


class Axis(NamedTuple):
    """A kind of change: the name of its measures, its setting on the horizontal axis, and the axis's title."""

    name: str
    setting: str
    title: str
    unchanged: str
    caption: str


AXES = (
    Axis("quantized", "bits", "bits of a weight", "32", "after the weights were rounded to fewer bits"),
    Axis("noisy", "noise", "noise, relative to the weights", "0", "with Gaussian noise on the weights"),
)


def survival(rows: Sequence[Row], look: Mapping[str, Look]) -> list[tuple[str, str]]:
    """Draw the figures of survival, each an SVG element with its caption; empty without such measures.

    The values of one figure have equal settings except the one on its horizontal axis. The unchanged weights are on the
    left.

    Args:
        rows: The summary of the runs.
        look: The colors and markers, from :func:`~lowland.report.drawing.looks`.
    """
    figures = []
    for axis in AXES:
        for settings, levels in _settings(rows, axis).items():
            lines = _lines(rows, axis, settings, levels)
            if lines:
                figures.append((_draw(lines, rows, look, axis, levels), _caption(lines, rows, axis, settings)))
    return figures


def _measured(row: Row, name: str, wanted: Mapping[str, Any]) -> Measured | None:
    """The measure of a contestant with exactly these settings; None also if a seed has no finite value."""
    key = json.dumps([GROUP, name, dict(sorted(wanted.items()))], sort_keys=True)
    measured = row.measures.get(key)
    return None if measured is None or measured.estimate is None else measured


def _settings(rows: Sequence[Row], axis: Axis) -> dict[str, list[float]]:
    """The levels on the horizontal axis, from the mildest on, for each combination of the other settings, as JSON."""
    levels_of: dict[str, set[float]] = {}
    for row in rows:
        for each in row.measures.values():
            measure = each.measure
            if measure.group == GROUP and measure.name == f"{axis.name}-test-{row.metric.name}":
                other = {name: value for name, value in measure.settings.items() if name != axis.setting}
                levels_of.setdefault(json.dumps(other, sort_keys=True), set()).add(measure.settings[axis.setting])
    return {key: sorted(levels, reverse=axis.setting == "bits") for key, levels in levels_of.items()}


def _lines(rows: Sequence[Row], axis: Axis, settings: str, levels: Sequence[float]) -> list[Line]:
    """The lines of all contestants that have the unchanged weights and a changed one, scaled for display."""
    other: dict[str, Any] = json.loads(settings)
    shared = {name: other[name] for name in ("examples", "refresh_stats")}
    lines = []
    for row in rows:
        name = row.metric.name
        points = [_measured(row, f"unchanged-test-{name}", shared)]
        points += [_measured(row, f"{axis.name}-test-{name}", other | {axis.setting: level}) for level in levels]
        known = [(float(x), _scaled(each, row)) for x, each in enumerate(points) if each is not None]
        if points[0] is not None and len(known) > 1:
            lines.append(Line(row, known, break_label(row.label, 16)))
    return lines


def _scaled(measured: Measured, row: Row) -> Estimate:
    """A mean and its interval over seeds; with one seed, the standard error of the draws, if there were several."""
    assert measured.estimate is not None
    mean, half = measured.estimate.mean, measured.estimate.half
    half = measured.measure.error if half is None else half
    scale = row.metric.scale
    return Estimate(scale * mean, None if half is None else scale * half, measured.estimate.n)


def _draw(lines: Sequence[Line], rows: Sequence[Row], look: Mapping[str, Look], axis: Axis, levels: Any) -> str:
    with rc_context(STYLE):
        right = 0.31 + 0.085 * max(len(part) for line in lines for part in line.name)
        height = 0.75 + LINE_PT / 72 * sum(len(line.name) + 0.15 for line in lines)
        figure, axes = canvas(4.7, max(3.3, height), left=0.52, right=right)
        middle, apart = (len(lines) - 1) / 2, min(APART, WIDTH / len(lines))
        moved = [
            line._replace(points=[(x + apart * (i - middle), mean) for x, mean in line.points])
            for i, line in enumerate(lines)
        ]
        for line in moved:
            _plot(axes, line, look[line.row.contestant])
        axes.set_xticks(range(len(levels) + 1), [axis.unchanged, *(f"{level:g}" for level in levels)])
        axes.set_xlim(-0.3, len(levels) + 0.3)
        _limit(axes, rows)
        label_axes(axes, axis.title, score_title(number_format(rows)))
        label_ends(figure, axes, moved, look)
        return svg(figure)


def _plot(axes: Axes, line: Line, style: Look) -> None:
    """One line with a mark and an interval at each level."""
    x, y = [place for place, _ in line.points], [mean.mean for _, mean in line.points]
    axes.errorbar(
        x,
        y,
        yerr=[mean.half or 0.0 for _, mean in line.points],
        color=style.color,
        lw=0.9 if style.grey else 1.5,
        elinewidth=0.9,
        capsize=0,
        marker=style.marker,
        ms=4.5,
        zorder=2.5 if style.grey else 3,
    )


def _limit(axes: Axes, rows: Sequence[Row]) -> None:
    """Keep the vertical axis within the possible values of the metric."""
    low, high = axes.get_ylim()
    least, most = rows[0].metric.bounds
    axes.set_ylim(max(low, least), min(high, most))


def _caption(lines: Sequence[Line], rows: Sequence[Row], axis: Axis, settings: str) -> str:
    several = any(mean.n > 1 for line in lines for _, mean in line.points)
    drawn = {mean.n > 1 for line in lines for _, mean in line.points if mean.half is not None}
    kinds = {True: "95 % intervals over seeds", False: "standard errors over draws"}
    kind = ", with one seed ".join(text for over_seeds, text in kinds.items() if over_seeds in drawn)
    bars = f" Bars are {kind}, cut at impossible values." if drawn else ""
    given = ", ".join(f"{name.replace('_', ' ')} {value_text(value)}" for name, value in json.loads(settings).items())
    mean = ", mean over seeds" if several else ""
    return f"Test {rows[0].metric.name} {axis.caption}{mean}.{bars} With {given}."
