"""Training losses of a run: the mean of each epoch over all ranks, and whether the training diverged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lowland.parallel import World

RISE = 0.05  # a training has diverged if its loss ends so much above that of the initial weights, as a fraction of it,
ERRORS = 3  # and so many standard errors of their difference, because losses of other batches scatter


@dataclass(frozen=True)
class Untrained:
    """The training loss at the initial weights.

    Args:
        loss: The mean over some examples.
        scatter: The standard deviation of an example's loss, as batches tell it; 0 from one batch.
        examples: The number of examples; of a ``Loss``, what its totals are divided by.
    """

    loss: float
    scatter: float
    examples: float


class Losses:
    """Sums losses on the device, and averages them over all ranks at the end of an epoch.

    Args:
        ranks: The ranks that train together.
        device: The device of the losses.

    Attributes:
        untrained: The loss at the initial weights; None in a run that a version of lowland without this attribute
            started.
        last: The mean loss of the last epoch; None before the end of the first epoch.
    """

    def __init__(self, ranks: World, device: torch.device) -> None:
        self._ranks = ranks
        self._sum, self._examples = torch.zeros((), dtype=torch.float64, device=device), 0.0
        self.untrained: Untrained | None = None
        self.last: float | None = None
        self._last_examples = 1.0

    @property
    def not_finite(self) -> bool:
        """Whether the loss of the last epoch is infinite or NaN, so that no further step can repair the weights."""
        return self.last is not None and not math.isfinite(self.last)

    @property
    def diverged(self) -> bool:
        """Whether the training diverged: the loss of the last epoch is not finite, or far above the first one.

        The first one is that of the initial weights. Far is both more than :data:`RISE` of it, and more than
        :data:`ERRORS` standard errors.
        """
        first = self.untrained
        if self.not_finite or first is None or self.last is None:
            return self.not_finite
        error = first.scatter * math.sqrt(1 / first.examples + 1 / self._last_examples)
        return self.last - first.loss > max(RISE * abs(first.loss), ERRORS * error)

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
        sums, counts = zip(*self._ranks.gather((float(self._sum), self._examples)), strict=True)
        self._last_examples = sum(counts) or 1.0
        self.last = float(sum(sums) / self._last_examples)
        self._sum, self._examples = torch.zeros_like(self._sum), 0.0
        return self.last

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint: sum and examples of each part of the batches. All ranks must call this."""
        gathered = self._ranks.gather((self._ranks.batch_part[0], float(self._sum), self._examples))
        seen = {index: (losses, examples) for index, losses, examples in gathered}
        first = None if self.untrained is None else asdict(self.untrained)
        last = {"last": self.last, "last_examples": self._last_examples}
        return {"seen": [seen[index] for index in sorted(seen)], "untrained": first, **last}

    def load(
        self,
        seen: Sequence[tuple[float, float]],
        untrained: Mapping[str, float] | None = None,
        last: float | None = None,
        last_examples: float = 1.0,
        first: float | None = None,
    ) -> None:
        """Load the state of a checkpoint; for another number of parts, each part gets the average of the sums.

        Args:
            seen: The sum of losses and the examples of each part of the batches.
            untrained: The loss at the initial weights.
            last: The mean loss of the last epoch.
            last_examples: The examples of the last epoch.
            first: The loss of the first step, in checkpoints of earlier versions; it is not used.
        """
        del first
        index, count = self._ranks.batch_part
        if len(seen) == count:
            losses, self._examples = seen[index]
        else:
            losses, self._examples = (sum(each) / count for each in zip(*seen, strict=True))
        self._sum.fill_(losses)
        self.untrained = None if untrained is None else Untrained(**untrained)
        self.last, self._last_examples = last, last_examples
