"""Where labels go in a figure so that none lies on another: beside points, and in a column at the ends of lines."""

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
SWEEPS = 2  # how often each label looks for its place


class Box(NamedTuple):
    """A rectangle in pixels: left, bottom, right, top."""

    left: float
    low: float
    right: float
    high: float

    def over(self, other: Box) -> float:
        """The area that two boxes share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.high, other.high) - max(self.low, other.low)
        return width * height if width > 0 and height > 0 else 0.0


class Label(NamedTuple):
    """Where a label goes.

    ``side`` says which part of the text is at ``x``: its left end where it stands right of its point, its right end
    where it stands left of it, else its center. ``leader`` is where a line from its point ends, None where it stands
    right beside it.
    """

    x: float
    y: float
    side: Literal["left", "right", "center"]
    leader: tuple[float, float] | None


def around(x: float, y: float, width: float, height: float) -> Box:
    """A box by its middle."""
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
    """A place for the label of every point, as near as there is one where it lies on no label and no point.

    Args:
        points: Their places in pixels.
        sizes: Width and height of their labels in pixels.
        frame: Labels stay inside.
        unit: Pixels of a point of type, 1/72 inch.
        bars: What labels keep off where they can.
        line: What no label lies on, though the lines to their points may cross it.
    """
    marks = [around(x, y, 9 * unit, 9 * unit) for x, y in points]
    boxes: dict[int, tuple[Box, float]] = {}
    # the most crowded first: those outside have more places left to go to; then all again, now that all are known
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
    """The cheapest place of a label, and how far it is from its point.

    A label never lies on what is heavy, and keeps off what is soft; the line to it keeps off what is solid.
    """
    places = [(reach, angle) for reach in REACHES for angle in ANGLES]
    boxes = [_candidate(point, size, angle, (7 + reach) * unit) for reach, angle in places]
    prices = 1000 * (size[0] * size[1] - _shared(boxes, [frame])) + 1000 * _shared(boxes, heavy)
    prices += 0.05 * _shared(boxes, soft)
    far = [n // len(ANGLES) + 0.02 * (n % len(ANGLES)) for n in range(len(places))]
    prices += unit * unit * np.array(far)
    best, cost = 0, math.inf
    for n in map(int, np.argsort(prices, kind="stable")):
        if prices[n] >= cost:  # a line to it makes none cheaper
            break
        line = _line(point, boxes[n], unit) if places[n][0] else []
        price = float(prices[n]) + (60 * float(_shared(line, solid).sum()) if line else 0.0)
        if price < cost:
            best, cost = n, price
    return boxes[best], places[best][0]


def _shared(boxes: Sequence[Box], others: Sequence[Box]) -> Array:
    """The area that each box shares with the others, shape ``(boxes,)``."""
    one, two = np.array(boxes).reshape(-1, 1, 4), np.array(others).reshape(1, -1, 4)
    wide = np.minimum(one[..., 2], two[..., 2]) - np.maximum(one[..., 0], two[..., 0])
    high = np.minimum(one[..., 3], two[..., 3]) - np.maximum(one[..., 1], two[..., 1])
    found: Array = (np.maximum(wide, 0) * np.maximum(high, 0)).sum(1)
    return found


def in_a_column(ends: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Middles of labels in a column: each at the height of its line's end, moved apart where they would overlap.

    Args:
        ends: Where lines end, in pixels.
        heights: Of the labels.
        low: Lower end of the column; labels go below it only where the column is too short.
        high: Its upper end.

    Example:
        >>> in_a_column([50.0, 50.0, 90.0], [10.0, 10.0, 10.0], 0.0, 100.0)
        [45.0, 55.0, 90.0]
    """
    # Neighbors that touch move as one block, whose middle is the mean of what its members want.
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
        place = top - height
        for j in members:
            middles[j] = place + heights[j] / 2
            place += heights[j]
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
    """A label whose edge is ``gap`` away from its point, in a direction."""
    dx, dy = math.cos(angle), math.sin(angle)
    x = point[0] + dx * (gap + size[0] / 2)
    return around(x, point[1] + dy * (gap + size[1] / 2), *size)


def _line(point: tuple[float, float], box: Box, unit: float) -> list[Box]:
    """Small boxes along the way from a point to its label."""
    end = _nearest(point, box)
    away = math.hypot(end[0] - point[0], end[1] - point[1])
    count = int(away / (6 * unit))
    return [
        around(point[0] + (end[0] - point[0]) * k / count, point[1] + (end[1] - point[1]) * k / count, unit, unit)
        for k in range(1, count)
    ]
