"""The mean time of steps that differ in what they compute."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median


def typical(laps: Sequence[float], gradients: Sequence[float]) -> float | None:
    """The mean time of a step without outliers.

    The median over all steps would ignore the expensive steps of a method that computes a second gradient only every
    fifth step. So each step counts with the median time of the steps that compute equally many gradients.

    Args:
        laps: The time of each step, in seconds.
        gradients: The number of gradients of each step.

    Returns:
        Seconds; None without steps.

    Example:
        >>> typical([1.0, 1.0, 1.0, 9.0, 2.0], [1, 1, 1, 1, 2])
        1.2
    """
    groups: dict[float, list[float]] = {}
    for lap, count in zip(laps, gradients, strict=True):
        groups.setdefault(round(count, 3), []).append(lap)
    if not groups:
        return None
    return sum(median(group) * len(group) for group in groups.values()) / len(laps)
