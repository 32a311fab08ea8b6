"""The learning curves of a report, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from lowland.core.errors import MissingExtraError
from lowland.report.drawing import LINE_PT, STYLE, Look, break_label, canvas, label_axes, label_color, score_title, svg
from lowland.report.placing import Box, in_a_column
from lowland.report.summary import Row
from lowland.report.values import number_format
from lowland.runs.record import EpochRecord, RunRecord
from lowland.runs.statistics import Estimate, estimate

try:
    from matplotlib import rc_context
    from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter
except ImportError:
    raise MissingExtraError("matplotlib", "lab") from None

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BANDS = 4  # a figure with more lines has no bands
Value: TypeAlias = Literal["test", "train_loss"]
Over: TypeAlias = Literal["epoch", "seconds"]


class Line(NamedTuple):
    """The learning curve of one contestant: its points, scaled for display, and its label in lines."""

    row: Row
    points: list[tuple[float, Estimate]]
    name: list[str]


def curves(
    records: Sequence[RunRecord],
    rows: Sequence[Row],
    look: Mapping[str, Look],
    *,
    value: Value = "test",
    over: Over = "epoch",
) -> str:
    """The SVG figure of the mean over seeds after each epoch; empty if no run recorded the value.

    Each line has its label at its end. If :func:`banded` is true, each line has its 95 % interval as a band.

    Args:
        records: The runs; unfinished runs are not drawn.
        rows: The summary of the runs, which gives the order and the labels.
        look: The colors and markers, from :func:`~lowland.report.drawing.looks`.
        value: The headline metric on the test set, or the training loss.
        over: The horizontal axis; seconds are the mean time at which the seeds finished the epoch.
    """
    lines = _lines(records, rows, value, over)
    if not lines:
        return ""
    with rc_context(STYLE):
        right = 0.31 + 0.085 * max(len(part) for line in lines for part in line.name)
        height = 0.75 + LINE_PT / 72 * sum(len(line.name) + 0.15 for line in lines)
        figure, axes = canvas(4.7, max(3.3, height), left=0.52, right=right)
        for index, line in enumerate(lines):
            _draw(axes, line.points, look[line.row.contestant], index, band=_are_separate(lines))
        means = [[mean.mean for _, mean in line.points] for line in lines]
        if value == "test":
            _zoom(axes, means, rows[0].metric.bounds)
        else:
            _scale_losses(axes, [mean for line in means for mean in line])
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=over == "epoch"))
        left = 0 if over == "seconds" else min(line.points[0][0] for line in lines)
        axes.set_xlim(left, max(left + 1e-9, *(line.points[-1][0] for line in lines)))
        title = score_title(number_format(rows)) if value == "test" else "training loss"
        label_axes(axes, "epoch" if over == "epoch" else "seconds of training", title)
        label_ends(figure, axes, lines, look)
        return svg(figure)


def banded(records: Sequence[RunRecord], rows: Sequence[Row], value: Value = "test", over: Over = "epoch") -> bool:
    """Whether :func:`curves` draws bands: for up to four lines, if every line ends outside the other intervals."""
    return _are_separate(_lines(records, rows, value, over))


def _are_separate(lines: Sequence[Line]) -> bool:
    ends = [line.points[-1][1] for line in lines]
    if len(lines) > BANDS or any(end.half is None for end in ends):
        return False
    return all(abs(a.mean - b.mean) > max(a.half or 0, b.half or 0) for a, b in combinations(ends, 2))


def _lines(records: Sequence[RunRecord], rows: Sequence[Row], value: Value, over: Over) -> list[Line]:
    lines = [Line(row, _points(records, row, value, over), break_label(row.label, 16)) for row in rows]
    return [line for line in lines if line.points]


def label_ends(
    figure: Figure,
    axes: Axes,
    lines: Sequence[Line],
    look: Mapping[str, Look],
) -> None:
    """Write each label on the right of the axes at the height of its line's end; a thin line connects them."""
    figure.draw_without_rendering()
    unit = figure.dpi / 72
    frame = Box(*axes.get_window_extent().extents)
    ends = [axes.transData.transform((line.points[-1][0], line.points[-1][1].mean)) for line in lines]
    inside = [min(max(float(y), frame.low), frame.high) for _, y in ends]
    heights = [(LINE_PT * len(line.name) + 1) * unit for line in lines]
    middles = in_a_column(inside, heights, frame.low - 12 * unit, frame.high + 12 * unit)
    to_data = axes.transData.inverted().transform
    for line, (x, _), y, middle in zip(lines, ends, inside, middles, strict=True):
        style = look[line.row.contestant]
        inside_axes = [to_data(place) for place in ((x, y), (frame.right, y))]
        beside_axes = [inside_axes[1], to_data((frame.right + 13 * unit, middle))]
        thin: dict[str, Any] = {"color": style.color, "lw": 0.6, "alpha": 0.7, "clip_on": False, "zorder": 2}
        if x < frame.right - unit:  # dotted, so that it does not look like a part of the learning curve
            axes.plot(*zip(*inside_axes, strict=True), ls=(0, (1, 4)), **thin)
        axes.plot(*zip(*beside_axes, strict=True), **thin)
        place = to_data((frame.right + 16 * unit, middle))
        name = "\n".join(line.name)
        axes.text(
            place[0],
            place[1],
            name,
            color=label_color(style),
            ha="left",
            va="center",
            linespacing=1.1,
            parse_math=False,
        )


def _points(records: Sequence[RunRecord], row: Row, value: str, over: str) -> list[tuple[float, Estimate]]:
    """The points of one contestant at the epochs that all its finished runs recorded, scaled for display."""
    runs = [{e.epoch: e for e in r.epochs} for r in records if r.finished and r.contestant == row.contestant]
    shared = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    points = []
    for number in shared:
        epochs: list[EpochRecord] = [run[number] for run in runs]
        places = [getattr(epoch, over) for epoch in epochs]
        values = [e.test.get(row.metric.name) if value == "test" else e.train_loss for e in epochs]
        known = [(row.metric.scale if value == "test" else 1) * v for v in values if v is not None]
        mean = estimate(known)
        if mean is not None and len(known) == len(values) and None not in places:
            points.append((sum(places) / len(places), mean))
    return points


def _draw(axes: Axes, points: list[tuple[float, Estimate]], style: Look, index: int, *, band: bool) -> None:
    x = [place for place, _ in points]
    every = max(1, len(points) // 5)
    axes.plot(
        x,
        [mean.mean for _, mean in points],
        color=style.color,
        lw=0.9 if style.grey else 1.7,
        marker="" if style.grey else style.marker,
        ms=4.5,
        markevery=(min(index * every // 6, len(points) - 1), every),
        zorder=2.5 if style.grey else 3,
    )
    if band and all(mean.half is not None for _, mean in points):
        low = [mean.mean - (mean.half or 0) for _, mean in points]
        high = [mean.mean + (mean.half or 0) for _, mean in points]
        axes.fill_between(x, low, high, color=style.color, alpha=0.13, lw=0)


def _zoom(axes: Axes, means: list[list[float]], bounds: tuple[float, float]) -> None:
    """Limit the vertical axis to the values after a third of the training, so that final differences are visible."""
    settled = [value for line in means for value in line[len(line) // 3 :]]
    low, high = min(settled), max(settled)
    room = (high - low) * 0.15 or abs(high) * 0.01 or 1.0
    least = max(bounds[0], 0.0 if low >= 0 else -math.inf)
    axes.set_ylim(max(least, low - room), min(bounds[1], high + room))


def _scale_losses(axes: Axes, means: list[float]) -> None:
    if min(means) > 0 and max(means) > 20 * min(means):
        axes.set_yscale("log")
        axes.set_ylim(min(means) / 1.4, max(means) * 1.4)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(visible=False, which="minor")
    elif min(means) >= 0:
        axes.set_ylim(bottom=0)
