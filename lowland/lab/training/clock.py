"""Measures the training time: steps only, without evaluation, checkpoints and display."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch


class Clock:
    """Measures the time of each step and sums it.

    Args:
        device: The device of the steps. Readings synchronize with a GPU, so that its work counts in the right step.

    Attributes:
        seconds: The total time of all steps, in seconds.
        laps: The time of each step, in seconds and in order.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self.laps: list[float] = []
        self._mark = 0.0

    def start(self) -> None:
        """Start the time of the next step."""
        self._mark = self._now()

    def lap(self) -> None:
        """Record the time of the step that ends now, and start the next one."""
        now = self._now()
        self.laps.append(now - self._mark)
        self.seconds += now - self._mark
        self._mark = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


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
