"""Exchanges a few numbers between the ranks of a training at every step, without waiting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lowland.parallel import World


class Pulse:
    """Sums a few numbers over all ranks at every step, and returns the sums one step later, so that no rank waits.

    Args:
        world: The ranks.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._group: Any = dist.new_group(backend="gloo") if world.size > 1 else None
        self._pending: tuple[Any, Tensor] | None = None

    def beat(self, values: Sequence[float]) -> list[float]:
        """Start the all-reduce of this rank's numbers, and return the sums of the previous call.

        The first call returns zeros. A single rank gets its own numbers at once.
        """
        if self._world.size == 1:
            return list(values)
        previous = [0.0] * len(values)
        if self._pending is not None:
            handle, sums = self._pending
            handle.wait()
            previous = sums.tolist()
        numbers = torch.tensor(values, dtype=torch.float64)
        self._pending = (dist.all_reduce(numbers, group=self._group, async_op=True), numbers)
        return previous

    def close(self) -> None:
        """Wait for the pending all-reduce and destroy the process group."""
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None
