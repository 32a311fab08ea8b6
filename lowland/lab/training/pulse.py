"""What the ranks of a training tell each other at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lowland.parallel import World


class Pulse:
    """What ranks tell each other once a step, heard one step later, so that nobody waits.

    Args:
        world: All ranks.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._group: Any = dist.new_group(backend="gloo") if world.size > 1 else None
        self._sent: tuple[Any, Tensor] | None = None

    def beat(self, values: Sequence[float]) -> list[float]:
        """Send this rank's numbers; get the sums over all ranks of those sent the last time, zeros the first time.

        On a single rank the numbers come back at once.
        """
        mine = torch.tensor(values, dtype=torch.float64)
        if self._world.size == 1:
            return list(values)
        heard = [0.0] * len(values)
        if self._sent is not None:
            handle, sums = self._sent
            handle.wait()
            heard = sums.tolist()
        self._sent = (dist.all_reduce(mine, group=self._group, async_op=True), mine)
        return heard

    def close(self) -> None:
        """Let what is under way come to its end."""
        if self._sent is not None:
            self._sent[0].wait()
            self._sent = None
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None
