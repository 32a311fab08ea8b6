"""Training losses of a run: the mean of each epoch over all ranks, and whether the training diverged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lowland.parallel import World

RISE = 0.05  # a training has diverged if its loss ends so much above that of the initial weights, as a fraction of it


class Losses:
    """Sums losses on the device, and averages them over all ranks at the end of an epoch.

    Args:
        ranks: The ranks that train together.
        device: The device of the losses.

    Attributes:
        first: The mean loss at the initial weights, over more than one batch, see
            :func:`~lowland.lab.training.rehearsal.untrained`; None in a run that a version of lowland without this
            attribute started.
        last: The mean loss of the last epoch; None before the end of the first epoch.
    """

    def __init__(self, ranks: World, device: torch.device) -> None:
        self._ranks = ranks
        self._sum, self._examples = torch.zeros((), dtype=torch.float64, device=device), 0.0
        self.first: float | None = None
        self.last: float | None = None

    @property
    def not_finite(self) -> bool:
        """Whether the loss of the last epoch is infinite or NaN, so that no further step can repair the weights."""
        return self.last is not None and not math.isfinite(self.last)

    @property
    def diverged(self) -> bool:
        """Whether the training diverged: the loss of the last epoch is not finite, or above that of initial weights.

        Losses of other batches scatter, so it must be above by more than :data:`RISE`.
        """
        if self.first is None or self.last is None:
            return self.not_finite
        return self.not_finite or self.last - self.first > RISE * abs(self.first)

    def add(self, loss: Tensor, examples: int) -> None:
        """Add the loss of a step.

        Args:
            loss: The mean loss over this rank's examples, shape ``()``.
            examples: The number of examples on this rank.
        """
        self._sum += loss.double() * examples
        self._examples += examples

    def end_epoch(self) -> float:
        """Return the mean loss of the epoch over the examples of all ranks, and start a new sum.

        All ranks must call this.
        """
        self.last = self._mean(float(self._sum), self._examples)
        self._sum, self._examples = torch.zeros_like(self._sum), 0.0
        return self.last

    def _mean(self, losses: float, examples: float) -> float:
        sums, counts = zip(*self._ranks.gather((losses, examples)), strict=True)
        return float(sum(sums) / (sum(counts) or 1))

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint: sum and examples of each part of the batches. All ranks must call this."""
        gathered = self._ranks.gather((self._ranks.batch_part[0], float(self._sum), self._examples))
        seen = {index: (losses, examples) for index, losses, examples in gathered}
        return {"seen": [seen[index] for index in sorted(seen)], "first": self.first, "last": self.last}

    def load(self, seen: Sequence[tuple[float, float]], first: float | None = None, last: float | None = None) -> None:
        """Load the state of a checkpoint; for another number of parts, each part gets the average of the sums.

        Args:
            seen: The sum of losses and the examples of each part of the batches.
            first: The mean loss at the initial weights.
            last: The mean loss of the last epoch.
        """
        index, count = self._ranks.batch_part
        if len(seen) == count:
            losses, self._examples = seen[index]
        else:
            losses, self._examples = (sum(each) / count for each in zip(*seen, strict=True))
        self._sum.fill_(losses)
        self.first, self.last = first, last
