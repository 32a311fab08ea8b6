from __future__ import annotations

import random
from itertools import combinations, pairwise

import pytest

from lowland.report.placing import Box, Label, around, beside_points, in_a_column

FRAME = Box(0, 0, 700, 400)


def boxes(labels: list[Label], sizes: list[tuple[float, float]]) -> list[Box]:
    shift = {"left": 0.5, "right": -0.5, "center": 0.0}
    return [around(at.x + shift[at.side] * w, at.y, w, h) for at, (w, h) in zip(labels, sizes, strict=True)]


@pytest.mark.parametrize("seed", range(5))
def test_labels_lie_on_nothing(seed: int) -> None:
    draw = random.Random(seed)
    points = [(draw.gauss(350, 60), draw.gauss(200, 40)) for _ in range(23)]
    sizes = [(draw.choice([30.0, 60.0, 90.0]), 14.0)] * 23
    line = Box(0, 199, 700, 201)
    found = boxes(beside_points(points, sizes, frame=FRAME, unit=1.0, line=line), sizes)
    for one, other in combinations(found, 2):
        assert one.over(other) == 0
    for box in found:
        assert box.over(FRAME) == pytest.approx((box.right - box.left) * (box.high - box.low))
        assert box.over(line) == 0
        assert all(box.over(around(x, y, 8, 8)) == 0 for x, y in points)


def test_a_lonely_label_stands_beside_its_point() -> None:
    left, right = beside_points([(10, 50), (690, 50)], [(40, 12), (40, 12)], frame=FRAME, unit=1.0)
    assert (left.side, right.side) == ("left", "right")
    assert left.leader is right.leader is None


def test_a_column_keeps_order_and_distance() -> None:
    draw = random.Random(0)
    ends = [draw.uniform(40, 60) for _ in range(10)] + [150.0]
    heights = [10.0] * 11
    found = in_a_column(ends, heights, 0.0, 200.0)
    order = sorted(range(11), key=lambda i: ends[i])
    placed = [found[i] for i in order]
    assert all(b - a >= 10 - 1e-9 for a, b in pairwise(placed))
    assert min(found) >= 5
    assert max(found) <= 195
    assert found[10] == 150.0
