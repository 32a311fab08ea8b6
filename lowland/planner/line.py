"""A straight line fitted to measured times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowland.core.errors import ArgumentError


@dataclass(frozen=True)
class Line:
    """Times that grow with a size, such as seconds of a pass with the number of its examples.

    Args:
        base: Seconds at size 0.
        slope: Seconds for each unit of size.
        error: The standard error of a time on the line, as a fraction of the time; None where nothing tells it.
    """

    base: float
    slope: float
    error: float | None = 0.0

    def __call__(self, size: float) -> float:
        """The seconds at a size, never below 0."""
        return max(self.base + self.slope * size, 0.0)


def fit(sizes: Sequence[float], seconds: Sequence[float]) -> Line:
    """The line with the least squared relative errors, with neither base nor slope below 0.

    Two sizes tell no error, because a line goes through any two times.

    Relative errors are what a prediction is judged by, and times at large sizes scatter more.

    Args:
        sizes: At least two sizes that differ.
        seconds: The time at each size, > 0.

    Raises:
        ArgumentError: Fewer than two sizes differ, or a time is not above 0.

    Example:
        >>> fit([1, 2, 4], [3.0, 5.0, 9.0])
        Line(base=1.0, slope=2.0, error=0.0)
    """
    if len(set(sizes)) < 2:
        raise ArgumentError(f"sizes must have two that differ, but are {list(sizes)}; measure at another size, too")
    if any(not s > 0 for s in seconds):
        raise ArgumentError(f"seconds must be above 0, but are {list(seconds)}; repeat until the clock sees a time")
    weights = [1 / s**2 for s in seconds]
    total = sum(weights)
    mean_size = sum(w * n for w, n in zip(weights, sizes, strict=True)) / total
    mean = sum(w * s for w, s in zip(weights, seconds, strict=True)) / total
    spread = sum(w * (n - mean_size) ** 2 for w, n in zip(weights, sizes, strict=True))
    slope = sum(w * (n - mean_size) * (s - mean) for w, n, s in zip(weights, sizes, seconds, strict=True)) / spread
    base = mean - slope * mean_size
    if slope < 0:
        base, slope = mean, 0.0
    elif base < 0:
        base = 0.0
        slope = sum(w * n * s for w, n, s in zip(weights, sizes, seconds, strict=True)) / sum(
            w * n**2 for w, n in zip(weights, sizes, strict=True)
        )
    misses = [(base + slope * n) / s - 1 for n, s in zip(sizes, seconds, strict=True)]
    error = (sum(m**2 for m in misses) / (len(sizes) - 2)) ** 0.5 if len(sizes) > 2 else None
    return Line(round(base, 15), round(slope, 15), None if error is None else round(error, 12))
