"""The first figure of a report: gain against cost, as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from lowland.core.errors import MissingExtraError
from lowland.report.columns import longer
from lowland.report.drawing import (
    LINE_PT,
    NEUTRAL,
    PAPER,
    STYLE,
    Look,
    break_label,
    canvas,
    label_axes,
    label_color,
    score_title,
    svg,
)
from lowland.report.placing import Box, beside_points
from lowland.report.summary import Row
from lowland.report.values import NumberFormat, minus, number_format

try:
    from matplotlib import rc_context
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, StrMethodFormatter
except ImportError:
    raise MissingExtraError("matplotlib", "lab") from None

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Point(NamedTuple):
    """A contestant in the figure of gain against cost; the values are scaled for display."""

    row: Row
    cost: float
    mean: float
    half: float


def gains(rows: Sequence[Row], look: Mapping[str, Look], *, narrow: bool = False) -> str:
    """The SVG figure of the paired gain with its interval against cost; empty if no run has finished.

    The baseline is the line at zero. Filled marks differ from the baseline after correction, hollow marks may not.
    Without a baseline the figure shows the score, with all marks filled.

    Args:
        rows: what :func:`~lowland.report.summary.summarize` returned.
        look: from :func:`~lowland.report.drawing.looks`.
        narrow: draw for a phone, with a portrait format.
    """
    label, cost = cost_axis(rows)
    style, base = number_format(rows), _baseline(rows)
    points = _points(rows, cost, base)
    if not points:
        return ""
    with rc_context(STYLE):
        many = max(0, len(points) - 8)
        size = (4.2, 4.1 + 0.2 * many) if narrow else (9.6, 4.0 + 0.13 * many)
        figure, axes = canvas(*size, left=0.52, right=0.12)
        if base is not None:
            axes.axhline(0, color=NEUTRAL, lw=1.2, zorder=2)
        for point in sorted(points, key=lambda point: not look[point.row.contestant].grey):
            _mark(axes, point, look[point.row.contestant])
        axes.set_ylim(*_limits(points, base, style))
        _limit_costs(axes, points)
        label_axes(axes, label, _gain_title(rows, base, style))
        if base is not None:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: minus(f"{y:+g}") if y else "0"))
        _label_points(figure, axes, points, look)
        return svg(figure)


def cost_axis(rows: Sequence[Row]) -> tuple[str, dict[str, float]]:
    """The cost that all finished rows share: relative time, else milliseconds, else gradients per step.

    The cost is that of the whole training if a contestant's own recipe has another number of steps than the
    baseline's; else the cost of a step.
    """
    finished = [row for row in rows if row.score]
    base = next((row.label for row in rows if row.baseline), "plain")
    axes = [
        ("time", f"time per step, × {base}", 1.0),
        ("seconds", "time per step, ms", 1000.0),
        ("gradients", "gradients per step", 1.0),
    ]
    if longer(rows) and any("@" in row.contestant for row in rows):
        axes[:0] = [
            ("duration", f"time of the whole training, × {base}", 1.0),
            ("work", f"gradients of the whole training, × {base}", 1.0),
        ]
    for name, label, unit in axes:
        values = {row.contestant: getattr(row, name) for row in finished}
        if values and None not in values.values():
            return label, {contestant: unit * value for contestant, value in values.items()}
    return "", {}


def _point(row: Row, cost: Mapping[str, float], base: Row | None, style: NumberFormat) -> Point | None:
    if base is not None and row.baseline:
        return Point(row, cost[row.contestant], 0.0, 0.0)
    estimate = row.score if base is None else row.difference
    if estimate is None:
        return None
    scale = style.metric.scale
    return Point(row, cost[row.contestant], scale * estimate.mean, scale * (estimate.half or 0.0))


def _mark(axes: Axes, point: Point, style: Look) -> None:
    is_filled = point.row.effect in ("better", "worse") or point.row.difference is None
    axes.errorbar(
        point.cost,
        point.mean,
        yerr=point.half or None,
        color=style.color,
        fmt=style.marker,
        ms=5.5 if style.grey else 7,
        mfc=style.color if is_filled else PAPER,
        mew=1.4,
        lw=1.0 if style.grey else 1.6,
        capsize=0 if style.grey else 3,
        zorder=3 if style.grey else 4,
    )


def cut(rows: Sequence[Row]) -> bool:
    """Whether :func:`gains` cuts an interval at the edge of the figure."""
    base = _baseline(rows)
    points = _points(rows, cost_axis(rows)[1], base)
    low, high = _limits(points, base, number_format(rows)) if points else (0.0, 0.0)
    return any(point.mean - point.half < low or point.mean + point.half > high for point in points)


def _baseline(rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row.baseline and row.score), None)


def _points(rows: Sequence[Row], cost: Mapping[str, float], base: Row | None) -> list[Point]:
    style = number_format(rows)
    return [point for row in rows if row.contestant in cost and (point := _point(row, cost, base, style))]


def _limits(points: Sequence[Point], base: Row | None, style: NumberFormat) -> tuple[float, float]:
    """The limits of the vertical axis: they include all means and most intervals, and exclude impossible values.

    The margin beyond the means is 1.5 times the median half-width of the intervals, and at most 2.5 times the range of
    the means. So a single wide interval does not compress the other contestants.
    """
    means = [point.mean for point in points]
    usual = 1.5 * median(point.half for point in points)
    room = max(min(2.5 * (max(means) - min(means)), usual), 3 * 10.0**-style.decimals)
    low = max(min(means) - room, min(point.mean - point.half for point in points))
    high = min(max(means) + room, max(point.mean + point.half for point in points))
    pad = 0.12 * (high - low) or room
    zero = style.metric.scale * base.score.mean if base is not None and base.score is not None else 0.0
    lowest, highest = (bound - zero for bound in style.metric.bounds)
    if base is not None and not style.metric.higher:
        lowest, highest = -highest, -lowest
    return max(lowest, low - pad), min(highest, high + pad)


def _limit_costs(axes: Axes, points: Sequence[Point]) -> None:
    """Set the limits of the cost axis; the axis is logarithmic if costs differ by more than a factor of four."""
    costs = [point.cost for point in points]
    if max(costs) > 4 * min(costs) > 0:
        axes.set_xscale("log")
        axes.set_xlim(min(costs) / 1.25, max(costs) * 1.25)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        return
    space = 0.1 * (max(costs) - min(costs)) or 0.3 * max(costs) or 1.0
    axes.set_xlim(max(0.0, min(costs) - space), max(costs) + space)
    axes.locator_params(axis="x", nbins=6)


def _gain_title(rows: Sequence[Row], base: Row | None, style: NumberFormat) -> str:
    return score_title(style) if base is None else style.titled(f"gain over {base.label}", style.points)


def _label_points(figure: Figure, axes: Axes, points: Sequence[Point], look: Mapping[str, Look]) -> None:
    """Write each label at the nearest free position around its point."""
    figure.draw_without_rendering()
    unit = figure.dpi / 72
    frame = Box(*axes.get_window_extent().extents)
    places = [tuple(map(float, axes.transData.transform((point.cost, point.mean)))) for point in points]
    bars = []
    for point, (x, _) in zip(points, places, strict=True):
        ends = [axes.transData.transform((point.cost, point.mean + side * point.half))[1] for side in (-1, 1)]
        bars.append(Box(x - 2 * unit, max(frame.low, ends[0]), x + 2 * unit, min(frame.high, ends[1])))
    names = ["\n".join(break_label(point.row.label, 18)) for point in points]
    sizes = [_size(name, unit) for name in names]
    zero = axes.transData.transform((0, 0))[1]
    line = Box(frame.left, zero - unit, frame.right, zero + unit) if frame.low < zero < frame.high else None
    labels = beside_points([(x, y) for x, y in places], sizes, frame=frame, unit=unit, bars=bars, line=line)
    to_data = axes.transData.inverted().transform
    for point, name, label, start in zip(points, names, labels, places, strict=True):
        style = look[point.row.contestant]
        x, y = to_data((label.x, label.y))
        axes.text(
            x,
            y,
            name,
            color=label_color(style),
            ha=label.side,
            va="center",
            linespacing=1.1,
            parse_math=False,
            zorder=6,
        )
        if label.leader is not None:
            (x0, y0), (x1, y1) = to_data(start), to_data(label.leader)
            axes.plot([x0, x1], [y0, y1], color=style.color, lw=0.7, alpha=0.8, zorder=2.5, scalex=False, scaley=False)


def _size(name: str, unit: float) -> tuple[float, float]:
    """The width and height of a label in pixels, estimated for a wide font."""
    parts = name.split("\n")
    return 6.1 * unit * max(map(len, parts)), (LINE_PT * len(parts) + 1.5) * unit
