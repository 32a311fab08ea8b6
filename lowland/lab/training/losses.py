"""Training losses of a run: the mean of every epoch over all ranks, and whether training has broken down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lowland.parallel import World


class Losses:
    """Sums losses on the device; ranks exchange them when an epoch ends.

    Args:
        ranks: The ranks that train together.
        device: Where the losses are.

    Attributes:
        first: Mean loss of the first step, before anything was learned; None before that, and in a run that was begun
            by a lowland that did not keep it.
        last: Mean loss of the last epoch; None before the first has ended.
    """

    def __init__(self, ranks: World, device: torch.device) -> None:
        self._ranks = ranks
        self._sum, self._examples = torch.zeros((), dtype=torch.float64, device=device), 0.0
        self.first: float | None = None
        self.last: float | None = None

    @property
    def lost(self) -> bool:
        """Whether the last epoch's loss is no number, so that no step can bring the weights back."""
        return self.last is not None and not math.isfinite(self.last)

    @property
    def diverged(self) -> bool:
        """Whether training broke down: the last epoch's loss is no number, or above that of the first step."""
        worse = self.first is not None and self.last is not None and self.last > self.first
        return self.lost or worse

    def add(self, loss: Tensor, examples: int, *, step: int) -> None:
        """Count the mean loss of a step, shape ``()``, over this rank's examples; all ranks call it."""
        self._sum += loss.double() * examples
        self._examples += examples
        if step == 1:
            self.first = self._mean(float(loss) * examples, examples)

    def end_epoch(self) -> float:
        """The mean loss of the epoch, over all examples that any rank has seen; all ranks call it."""
        self.last = self._mean(float(self._sum), self._examples)
        self._sum, self._examples = torch.zeros_like(self._sum), 0.0
        return self.last

    def _mean(self, losses: float, examples: float) -> float:
        sums, counts = zip(*self._ranks.gather((losses, examples)), strict=True)
        return float(sum(sums) / (sum(counts) or 1))

    def state(self) -> dict[str, Any]:
        """For a checkpoint: sums and examples of every share of the batches; all ranks call it."""
        gathered = self._ranks.gather((self._ranks.share[0], float(self._sum), self._examples))
        seen = {share: (losses, examples) for share, losses, examples in gathered}
        return {"seen": [seen[share] for share in sorted(seen)], "first": self.first, "last": self.last}

    def load(self, seen: Sequence[tuple[float, float]], first: float | None = None, last: float | None = None) -> None:
        """Go on where a checkpoint was; shares of another number of ranks are divided anew."""
        number, count = self._ranks.share
        if len(seen) == count:
            losses, self._examples = seen[number]
        else:
            losses, self._examples = (sum(each) / count for each in zip(*seen, strict=True))
        self._sum.fill_(losses)
        self.first, self.last = first, last
