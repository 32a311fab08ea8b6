from __future__ import annotations

import numpy as np
import pytest

from lowland.core.errors import ArgumentError
from lowland.planner.line import Line, fit


def test_a_line_is_found_again() -> None:
    line = fit([8, 16, 64, 256], [0.5 + 0.25 * n for n in (8, 16, 64, 256)])
    assert (line.base, line.slope, line.error) == pytest.approx((0.5, 0.25, 0.0), abs=1e-12)
    assert line(32) == pytest.approx(8.5)


def test_the_fit_is_the_least_squares_of_relative_errors() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([4.0, 8, 16, 32, 64])
    seconds = (0.3 + 0.1 * sizes) * rng.uniform(0.9, 1.1, 5)
    line = fit(sizes.tolist(), seconds.tolist())
    matrix = np.stack([np.ones(5), sizes], 1) / seconds[:, None]
    base, slope = np.linalg.lstsq(matrix, np.ones(5), rcond=None)[0]
    assert (line.base, line.slope) == pytest.approx((base, slope))
    assert line.error == pytest.approx(np.sqrt(np.sum((matrix @ [base, slope] - 1) ** 2) / 3))


def test_a_falling_line_is_level_and_a_line_below_zero_begins_there() -> None:
    level = fit([1, 2, 3], [2.0, 1.9, 1.8])
    weights = np.array([2.0, 1.9, 1.8]) ** -2.0
    assert (level.base, level.slope) == pytest.approx((float(np.average([2.0, 1.9, 1.8], weights=weights)), 0.0))
    steep = fit([1, 2, 4], [0.5, 2.5, 4.5])
    ratios = np.array([1, 2, 4]) / np.array([0.5, 2.5, 4.5])
    assert (steep.base, steep.slope) == pytest.approx((0.0, float(ratios.sum() / (ratios**2).sum())))


def test_a_time_is_never_below_zero() -> None:
    assert Line(-1.0, 0.1)(2) == 0.0


@pytest.mark.parametrize(("sizes", "seconds"), [([4], [1.0]), ([4, 4], [1.0, 1.0]), ([2, 4], [0.0, 1.0])])
def test_measurements_that_give_no_line_are_refused(sizes: list[float], seconds: list[float]) -> None:
    with pytest.raises(ArgumentError, match=r"must (have two that differ|be above 0)"):
        fit(sizes, seconds)
