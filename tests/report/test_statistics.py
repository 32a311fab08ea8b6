from __future__ import annotations

from math import sqrt

import pytest
from scipy.stats import t

from lowland.report.statistics import Estimate, effect, estimate, paired


def test_mean_and_interval_by_hand() -> None:
    # 90, 92, 94, 96, 98: mean 94, s = sqrt(40 / 4), t(0.975, 4) = 2.776445 (printed tables)
    found = estimate([90.0, 92.0, 94.0, 96.0, 98.0])
    assert found is not None
    assert (found.mean, found.n) == (94.0, 5)
    assert found.half == pytest.approx(2.776445 * sqrt(10) / sqrt(5), rel=1e-6)


@pytest.mark.parametrize("n", [2, 3, 10, 40])
def test_quantile_is_that_of_scipy_stats(n: int) -> None:
    values = [float(i % 3) for i in range(n)]
    mean = sum(values) / n
    deviation = sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    found = estimate(values)
    assert found is not None
    assert found.half == pytest.approx(t.ppf(0.975, n - 1) * deviation / sqrt(n), rel=1e-12)


def test_too_few_values() -> None:
    assert estimate([]) is None
    assert estimate([0.5]) == Estimate(0.5, None, 1)


def test_paired_takes_the_common_seeds() -> None:
    # differences 1, 2, 3 on seeds 1, 2, 3: mean 2, s = 1, t(0.975, 2) = 4.302653
    found = paired({0: 99.0, 1: 11.0, 2: 22.0, 3: 33.0}, {3: 30.0, 2: 20.0, 1: 10.0, 7: 0.0})
    assert found is not None
    assert (found.mean, found.n) == (2.0, 3)
    assert found.half == pytest.approx(4.302653 / sqrt(3), rel=1e-6)
    assert paired({1: 1.0}, {2: 1.0}) is None


@pytest.mark.parametrize(
    ("mean", "half", "said"),
    [
        (0.5, 0.4, "better"),
        (-0.5, 0.4, "worse"),
        (0.5, 0.5, "open"),
        (-0.1, 0.4, "open"),
        (9.0, None, "open"),
        (0, 0, "open"),
    ],
)
def test_effect(mean: float, half: float | None, said: str) -> None:
    assert effect(Estimate(mean, half, 3)) == said


def test_equal_differences_prove_nothing() -> None:
    assert effect(Estimate(mean=0.2, half=0.0, n=2)) == "open"
