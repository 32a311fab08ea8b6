"""Training time: steps only, without evaluation, checkpoints and display."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import torch


class Clock:
    """Adds up the time of steps.

    Args:
        device: Where the steps run; a GPU is waited for, so that its work counts where it belongs.

    Attributes:
        seconds: The sum over all steps.
        laps: The time of every step, in order.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self.laps: list[float] = []
        self._mark = 0.0

    def start(self) -> None:
        """From now on the time belongs to the next step."""
        self._mark = self._now()

    def lap(self) -> None:
        """The step is over; the next one begins."""
        now = self._now()
        self.laps.append(now - self._mark)
        self.seconds += now - self._mark
        self._mark = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def typical(laps: Sequence[float], gradients: Sequence[float]) -> float | None:
    """The mean time of a step with outliers taken out.

    A median over all steps would hide the costly ones of a method that computes a second gradient at every fifth
    step only. So: the median among steps with the same number of gradients, then the mean over all steps.

    Args:
        laps: Seconds of every step.
        gradients: How many gradients that step computed.

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
