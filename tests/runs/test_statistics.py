from __future__ import annotations

import random
from math import sqrt

import pytest
from scipy.stats import t, ttest_1samp

from lowland.runs.statistics import Estimate, effect, estimate, holm, paired


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


def test_p_is_that_of_scipy_stats() -> None:
    values = [0.3, -0.1, 0.4, 0.2]
    found = estimate(values)
    assert found is not None
    assert found.p == pytest.approx(ttest_1samp(values, 0.0).pvalue, rel=1e-12)


@pytest.mark.parametrize(
    ("mean", "p", "said"),
    [(0.5, 0.049, "better"), (-0.5, 0.049, "worse"), (0.5, 0.05, "open"), (-0.1, 0.4, "open"), (9.0, None, "open")],
)
def test_effect(mean: float, p: float | None, said: str) -> None:
    assert effect(Estimate(mean, 0.1, 3), p) == said


def test_equal_differences_prove_nothing() -> None:
    found = estimate([0.25, 0.25])
    assert found == Estimate(0.25, 0.0, 2, None)


@pytest.mark.parametrize("gain", [0.1, 0.01, 0.0])
def test_differences_that_rounding_makes_unequal_prove_nothing(gain: float) -> None:
    """0.8 - 0.7, 0.9 - 0.8 and 1.0 - 0.9 are three floats; by hand the differences are equal."""
    before = {0: 0.8, 1: 0.7, 2: 0.9}
    found = paired({seed: round(value + gain, 2) for seed, value in before.items()}, before)
    assert found is not None
    assert (found.half, found.p) == (0.0, None)
    assert found.mean == pytest.approx(gain, abs=1e-12)
    assert estimate([0.1, 0.1, 0.1]) == Estimate(pytest.approx(0.1, rel=1e-12), 0.0, 3, None)


def test_small_differences_of_large_values_are_judged() -> None:
    # differences 1e-9, 2e-9, 3e-9: t = 2 / (1 / sqrt(3)), far above the rounding of values near 1
    found = paired({0: 1 + 1e-9, 1: 1 + 2e-9, 2: 1 + 3e-9}, {0: 1.0, 1: 1.0, 2: 1.0})
    assert found is not None
    assert found.p == pytest.approx(ttest_1samp([1.0, 2.0, 3.0], 0.0).pvalue, rel=1e-5)


def test_holm_by_hand() -> None:
    # sorted: 0.01·4, 0.015·3 = 0.045, 0.02·2 = 0.04 → 0.045, 0.9
    assert holm([0.02, 0.9, 0.01, None, 0.015]) == pytest.approx([0.045, 0.9, 0.04, None, 0.045])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([None]) == [None]


def test_chance_alone_seldom_makes_a_finding_in_a_large_table() -> None:
    """22 comparisons of noise with noise: one in twenty tables has a finding, not two in three."""
    draw = random.Random(0)
    tables, alone, corrected = 200, 0, 0
    for _ in range(tables):
        values = [estimate(draw.gauss(0, 1) for _ in range(5)).p for _ in range(22)]
        alone += min(values) < 0.05
        corrected += min(holm(values)) < 0.05
    assert alone > 0.5 * tables
    assert corrected < 0.1 * tables
