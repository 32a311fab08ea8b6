"""Means over seeds with their 95 % t-intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

from lowland.core.errors import MissingExtraError

Effect = Literal["better", "worse", "open"]

LEVEL = 0.05  # a difference is significant if its corrected p value is below this level
ROUNDING = 1e-12  # values whose deviation is below this fraction of their size are equal


@dataclass(frozen=True)
class Estimate:
    """The mean of ``n`` values, with its t-interval and its t-test against 0.

    ``half`` is the half-width of the 95 % interval; None if n < 2. ``p`` is the two-sided p value of the hypothesis
    that the true mean is 0; None if n < 2 or if all values are equal, because then the t-test is undefined.
    """

    mean: float
    half: float | None
    n: int
    p: float | None = None


def estimate(values: Iterable[float], size: float = 0.0) -> Estimate | None:
    """Mean and 95 % t-interval, ``mean ± t(0.975, n − 1)·s/√n``; None without values.

    Args:
        values: One number per seed.
        size: The largest absolute value of the numbers whose differences the values are.

    Example:
        >>> accuracy = estimate([1.0, 2.0, 3.0])
        >>> accuracy.mean, round(accuracy.half, 4), accuracy.n
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
    # Equal values differ by rounding, which the t-test would take for a deviation: 0.9 - 0.8 is not 0.8 - 0.7.
    is_rounding = deviation <= ROUNDING * max(size, *map(abs, sample))
    error = 0.0 if is_rounding else deviation / sqrt(n)
    quantile, tail = _student(n - 1, mean / error if error else None)
    return Estimate(mean, quantile * error, n, tail)


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
    """The mean of ``values[seed] − baseline[seed]`` over the common seeds, with its 95 % t-interval.

    A seed fixes initialization and data order, so the difference within a seed is less noisy than the
    difference of the means. None without a common seed.
    """
    pairs = [(values[seed], baseline[seed]) for seed in sorted(values.keys() & baseline.keys())]
    size = max((abs(value) for pair in pairs for value in pair), default=0.0)
    return estimate((value - other for value, other in pairs), size)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Correct p values for the number of comparisons by Holm's method.

    The correction keeps the chance of one or more false findings at 5 % if those below 0.05 are called significant.
    The smallest of n values is multiplied by n, the next by n − 1, and so on; none may fall below the one before.

    Args:
        values: One p value per comparison; None if the test is undefined. These comparisons are not counted.

    Returns:
        The corrected values in the same order.

    Reference:
        Sture Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979.

    Example:
        >>> [round(p, 3) for p in holm([0.04, 0.01, 0.03])]
        [0.06, 0.03, 0.06]
    """
    known = sorted((p, i) for i, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        corrected[i] = highest
    return corrected


def effect(difference: Estimate, p: float | None) -> Effect:
    """The conclusion of a comparison: "better" or "worse" if the corrected ``p`` is below 0.05, else "open"."""
    # p is None if all differences are equal. A few equal differences can be chance, because accuracies are coarse.
    if p is None or p >= LEVEL:
        return "open"
    return "better" if difference.mean > 0 else "worse"


def _student(freedom: int, t: float | None) -> tuple[float, float | None]:
    """The 0.975 quantile of Student's t distribution, and the two-sided p value of ``t``."""
    try:
        from scipy.special import stdtr, stdtrit  # as scipy.stats.t, but scipy.stats takes a second to load
    except ImportError:
        raise MissingExtraError("scipy", "lab") from None
    return float(stdtrit(freedom, 0.975)), None if t is None else float(2 * stdtr(freedom, -abs(t)))
