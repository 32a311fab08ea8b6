"""Means over seeds with their 95 % t-intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Literal

from lowland.errors import MissingExtraError

Effect = Literal["better", "worse", "open"]


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` values; ``half`` is half the width of its 95 % interval, None where n < 2."""

    mean: float
    half: float | None
    n: int


def estimate(values: Iterable[float]) -> Estimate | None:
    """Mean and 95 % t-interval, ``mean ± t(0.975, n − 1)·s/√n``; None without values.

    Args:
        values: one number per seed.

    Example:
        >>> found = estimate([1.0, 2.0, 3.0])
        >>> found.mean, round(found.half, 4), found.n
        (2.0, 2.4841, 3)
    """
    sample = list(values)
    n = len(sample)
    if n == 0:
        return None
    mean = sum(sample) / n
    if n == 1:
        return Estimate(mean, None, 1)
    deviation = sqrt(sum((value - mean) ** 2 for value in sample) / (n - 1))
    return Estimate(mean, _quantile(n - 1) * deviation / sqrt(n), n)


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
    """The mean of ``values[seed] − baseline[seed]`` over the common seeds, with its 95 % t-interval.

    A seed fixes initialization and data order, so the difference within a seed is less noisy than the
    difference of the means. None without a common seed.
    """
    return estimate(values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys()))


def effect(difference: Estimate) -> Effect:
    """What an interval allows to say: "better", "worse", or "open" where it covers 0 or has no width."""
    # Accuracies are coarse: equal differences over a few seeds give an interval of width 0, which proves nothing.
    if not difference.half or abs(difference.mean) <= difference.half:
        return "open"
    return "better" if difference.mean > 0 else "worse"


def _quantile(freedom: int) -> float:
    try:
        from scipy.special import stdtrit  # scipy.stats.t.ppf, without the second scipy.stats takes to load
    except ImportError:
        raise MissingExtraError("scipy", "lab") from None
    return float(stdtrit(freedom, 0.975))
