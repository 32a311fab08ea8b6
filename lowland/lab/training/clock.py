"""Measures the training time: steps only, without evaluation, checkpoints and display."""

from __future__ import annotations

import time
from typing import Any

import torch

from lowland.core.transfer import has_streams


class Clock:
    """Measures the time of each step and sums it.

    On a GPU the time of a step is that between two events in the queue of the GPU, and is read when the next step has
    been queued. So the host does not wait for a step before it prepares the next one, as in a training without a clock.

    Args:
        device: The device of the steps.

    Attributes:
        seconds: The total time of all steps, in seconds; on a GPU, without steps that have not been read.
        laps: The time of each of these steps, in seconds and in order.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self.laps: list[float] = []
        self._mark: Any = 0.0
        self._gpu: Any = getattr(torch, device.type) if has_streams(device) else None  # torch.cuda, torch.xpu
        self._unread: list[tuple[Any, Any]] = []  # the events at the start and at the end of steps

    def start(self) -> None:
        """Start the time of the next step."""
        self._mark = self._now()

    def lap(self) -> None:
        """Record the time of the step that ends now, and start the next one."""
        now = self._now()
        if self._gpu is None:
            self._add(now - self._mark)
        else:
            self._unread.append((self._mark, now))
            self._read(1)
        self._mark = now

    def settle(self) -> float:
        """Read the times of all steps, for which the host waits for a GPU, and return their sum."""
        self._read(0)
        return self.seconds

    def _read(self, left: int) -> None:
        """Read the times of all steps but the last ``left`` ones."""
        while len(self._unread) > left:
            begun, ended = self._unread.pop(0)
            ended.synchronize()
            self._add(begun.elapsed_time(ended) / 1e3)

    def _add(self, lap: float) -> None:
        self.laps.append(lap)
        self.seconds += lap

    def _now(self) -> Any:
        """The time; on a GPU, an event in its queue."""
        if self._gpu is None:
            return time.perf_counter()
        event = self._gpu.Event(enable_timing=True)
        event.record(self._gpu.current_stream(self.device))
        return event
