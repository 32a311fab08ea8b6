"""Places labels in a figure without overlap: beside points, and in a column at the ends of lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from lowland.core.errors import MissingExtraError

try:
    import numpy as np
except ImportError:
    raise MissingExtraError("numpy", "lab") from None

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

ANGLES = [math.pi * n / 8 for n in (0, 8, 4, 12, 1, 15, 7, 9, 2, 14, 6, 10, 3, 13, 5, 11)]
REACHES = (0.0, 6.0, 13.0, 22.0, 33.0, 46.0, 62.0, 80.0, 100.0, 125.0, 155.0)
SWEEPS = 2  # how many times each label is placed


class Box(NamedTuple):
    """A rectangle in pixels: left, bottom, right, top."""

    left: float
    low: float
    right: float
    high: float

    def over(self, other: Box) -> float:
        """The area of the intersection of two boxes."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.high, other.high) - max(self.low, other.low)
        return width * height if width > 0 and height > 0 else 0.0


class Label(NamedTuple):
    """The position of a label.

    ``side`` says which part of the text is at ``x``: the left end if the label is right of its point, the right end if
    it is left of its point, else the center. ``leader`` is the end of the line from the point to the label; None if the
    label is close to its point.
    """

    x: float
    y: float
    side: Literal["left", "right", "center"]
    leader: tuple[float, float] | None


def around(x: float, y: float, width: float, height: float) -> Box:
    """A box with this center, width and height."""
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def beside_points(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    *,
    frame: Box,
    unit: float,
    bars: Sequence[Box] = (),
    line: Box | None = None,
) -> list[Label]:
    """The position of each point's label: as near as possible without covering another label or a point.

    Args:
        points: The positions of the points in pixels.
        sizes: The width and height of each label in pixels.
        frame: The box that labels must not leave.
        unit: The pixels of a typographic point, 1/72 inch.
        bars: Boxes that labels avoid if possible.
        line: A box that labels must not cover; the lines from points to labels may cross it.
    """
    marks = [around(x, y, 9 * unit, 9 * unit) for x, y in points]
    boxes: dict[int, tuple[Box, float]] = {}
    # Place the most crowded points first, because isolated points have more free space; then place all labels again.
    crowd = [sum(math.hypot(x - ox, y - oy) < 70 * unit for ox, oy in points) for x, y in points]
    order = sorted(range(len(points)), key=lambda i: -crowd[i])
    for i in order * SWEEPS:
        others = [box for j, (box, _) in boxes.items() if j != i]
        leaders = [
            step for j, (box, reach) in boxes.items() if j != i and reach for step in _line(points[j], box, unit)
        ]
        solid = marks[:i] + marks[i + 1 :] + others
        heavy = [*others, *marks, *([] if line is None else [line])]
        boxes[i] = _best(points[i], sizes[i], unit, frame, heavy, [*bars, *leaders], solid)
    return [_label(point, *boxes[i]) for i, point in enumerate(points)]


def _best(
    point: tuple[float, float],
    size: tuple[float, float],
    unit: float,
    frame: Box,
    heavy: Sequence[Box],
    soft: Sequence[Box],
    solid: Sequence[Box],
) -> tuple[Box, float]:
    """The cheapest position of a label, and its distance from its point.

    A label must not cover ``heavy`` boxes and avoids ``soft`` boxes. The line to the label avoids ``solid`` boxes.
    """
    places = [(reach, angle) for reach in REACHES for angle in ANGLES]
    boxes = [_candidate(point, size, angle, (7 + reach) * unit) for reach, angle in places]
    prices = 1000 * (size[0] * size[1] - _shared(boxes, [frame])) + 1000 * _shared(boxes, heavy)
    prices += 0.05 * _shared(boxes, soft)
    distances = [n // len(ANGLES) + 0.02 * (n % len(ANGLES)) for n in range(len(places))]
    prices += unit * unit * np.array(distances)
    best, cost = 0, math.inf
    for n in map(int, np.argsort(prices, kind="stable")):
        if prices[n] >= cost:  # the price of a line is never negative, so no later position is cheaper
            break
        line = _line(point, boxes[n], unit) if places[n][0] else []
        price = float(prices[n]) + (60 * float(_shared(line, solid).sum()) if line else 0.0)
        if price < cost:
            best, cost = n, price
    return boxes[best], places[best][0]


def _shared(boxes: Sequence[Box], others: Sequence[Box]) -> Array:
    """The summed intersection area of each box with the others, shape ``(boxes,)``."""
    ours, theirs = np.array(boxes).reshape(-1, 1, 4), np.array(others).reshape(1, -1, 4)
    wide = np.minimum(ours[..., 2], theirs[..., 2]) - np.maximum(ours[..., 0], theirs[..., 0])
    high = np.minimum(ours[..., 3], theirs[..., 3]) - np.maximum(ours[..., 1], theirs[..., 1])
    areas: Array = (np.maximum(wide, 0) * np.maximum(high, 0)).sum(1)
    return areas


def in_a_column(ends: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """The centers of labels in a column: each at the height of its line's end, moved apart to avoid overlap.

    Args:
        ends: The heights of the ends of the lines, in pixels.
        heights: The heights of the labels.
        low: The lower end of the column; labels go below it only if the column is too short.
        high: The upper end of the column.

    Example:
        >>> in_a_column([50.0, 50.0, 90.0], [10.0, 10.0, 10.0], 0.0, 100.0)
        [45.0, 55.0, 90.0]
    """
    # Labels that touch form a block, which is centered at the mean of the positions that its members prefer.
    blocks: list[tuple[list[int], float, float]] = []  # members, upper edge of the block, its height
    for i in sorted(range(len(ends)), key=lambda i: (ends[i], i)):
        members, top, height = [i], ends[i] + heights[i] / 2, heights[i]
        top = min(max(top, low + height), high)
        while blocks and top - height < blocks[-1][1]:
            below, _, others = blocks.pop()
            members, height = below + members, others + height
            wanted, offset = [], 0.0
            for j in members:
                wanted.append(ends[j] - offset - heights[j] / 2)
                offset += heights[j]
            bottom = min(max(sum(wanted) / len(wanted), low), high - height)
            top = bottom + height
        blocks.append((members, top, height))
    middles = [0.0] * len(ends)
    for members, top, height in blocks:
        edge = top - height
        for j in members:
            middles[j] = edge + heights[j] / 2
            edge += heights[j]
    return middles


def _label(point: tuple[float, float], box: Box, reach: float) -> Label:
    y = (box.low + box.high) / 2
    leader = _nearest(point, box) if reach > REACHES[1] else None
    if box.left > point[0]:
        return Label(box.left, y, "left", leader)
    if box.right < point[0]:
        return Label(box.right, y, "right", leader)
    return Label((box.left + box.right) / 2, y, "center", leader)


def _nearest(point: tuple[float, float], box: Box) -> tuple[float, float]:
    return min(max(point[0], box.left), box.right), min(max(point[1], box.low), box.high)


def _candidate(point: tuple[float, float], size: tuple[float, float], angle: float, gap: float) -> Box:
    """The box of a label whose edge is ``gap`` away from its point in the direction of ``angle``."""
    dx, dy = math.cos(angle), math.sin(angle)
    x = point[0] + dx * (gap + size[0] / 2)
    return around(x, point[1] + dy * (gap + size[1] / 2), *size)


def _line(point: tuple[float, float], box: Box, unit: float) -> list[Box]:
    """Small boxes along the line from a point to its label."""
    end = _nearest(point, box)
    away = math.hypot(end[0] - point[0], end[1] - point[1])
    count = int(away / (6 * unit))
    return [
        around(point[0] + (end[0] - point[0]) * k / count, point[1] + (end[1] - point[1]) * k / count, unit, unit)
        for k in range(1, count)
    ]
