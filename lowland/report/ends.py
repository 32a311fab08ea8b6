"""Names of curves, written at their ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lowland.report.drawing import LINE_PT
from lowland.report.placing import Box, in_a_column

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def name_ends(
    figure: Figure,
    axes: Axes,
    names: Sequence[tuple[str, str]],
    ends: Sequence[tuple[float, float]],
    *,
    inside: bool = False,
) -> None:
    """Write names right of the axes, each as near as possible to the end of its curve; a thin line leads there.

    Args:
        figure: The figure.
        axes: The axes, with their final limits.
        names: Name and color of each curve.
        ends: The last point of each curve, in data coordinates.
        inside: Whether curves may end left of the edge; the thin lines then begin at their ends.
    """
    figure.draw_without_rendering()
    unit = figure.dpi / 72
    frame = Box(*axes.get_window_extent().extents)
    points = [axes.transData.transform(end) for end in ends]
    heights = [min(max(float(y), frame.low), frame.high) for _, y in points]
    middles = in_a_column(heights, [(LINE_PT + 1) * unit] * len(names), frame.low - 12 * unit, frame.high + 12 * unit)
    to_axes = axes.transAxes.inverted().transform
    thin: dict[str, Any] = {"lw": 0.6, "alpha": 0.7, "clip_on": False, "transform": axes.transAxes}
    for (name, color), (x, _), y, middle in zip(names, points, heights, middles, strict=True):
        begin = float(x) + 2 * unit if inside else frame.right
        start, end, place = map(
            to_axes, ((begin, y), (frame.right + 13 * unit, middle), (frame.right + 16 * unit, middle))
        )
        axes.plot(*zip(start, end, strict=True), color=color, **thin)
        axes.text(place[0], place[1], name, color=color, va="center", transform=axes.transAxes, parse_math=False)
