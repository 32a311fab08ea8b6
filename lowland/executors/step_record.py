"""What the passes of one step have seen so far."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lowland.executors.guards import Remembered, Suspect
from lowland.executors.modes import seeds


class StepRecord:
    """What the passes of one step have seen so far; every step begins with a new record.

    Args:
        number: The number of the step.
        params: The number of parameters.
        watched: Whether weights, gradients and what the loss reaches are looked at around each forward and backward.

    Attributes:
        number: The number of the step.
        watched: As above.
        reached: Which parameters any backward pass has reached.
        finite: Whether all passes are finite, shape ``()``; None without a scaler.
        suspects: Tensors beside the parameters that the losses have reached.
        gradients: The gradients of all other tensors before a backward that the caller runs; None: not looked at.
    """

    def __init__(self, number: int, params: int, watched: bool) -> None:
        self.number = number
        self.watched = watched
        self.reached = [False] * params
        self.finite: Tensor | None = None
        self.suspects: list[Suspect] = []
        self.gradients: list[Remembered] | None = None
        self._draws = 0  # how often the step has drawn seeds
        self._shared: int | None = None  # the seed of all probes with rng="shared"

    def reach(self, reached: Sequence[bool] | None) -> None:
        """Add the parameters that one backward pass has reached; None means all of them."""
        if reached is None:
            self.reached = [True] * len(self.reached)
        else:
            self.reached = [a or b for a, b in zip(self.reached, reached, strict=True)]

    def check(self, finite: Tensor) -> None:
        """Add whether one pass is finite: the step is finite only if all its passes are."""
        self.finite = finite if self.finite is None else self.finite & finite

    def agree(self, finite: Tensor) -> None:
        """Replace this rank's ``finite`` by what all ranks have agreed on."""
        self.finite = finite

    def suspect(self, suspects: Sequence[Suspect]) -> None:
        """Add tensors beside the parameters that a loss has reached."""
        self.suspects = [*self.suspects, *suspects]

    def clear_suspects(self) -> list[Suspect]:
        """The suspects so far; the record is empty of suspects afterwards."""
        suspects, self.suspects = self.suspects, []
        return suspects

    def seeds(self, count: int, *, shared: bool) -> list[int]:
        """Seeds for probes that are answered together; none for one alone, which draws from the global stream.

        Args:
            count: The number of probes.
            shared: Whether all probes of the step draw the same numbers: one seed for all of them, also for a probe
                that is answered alone later in the step. Otherwise every probe has a seed of its own.
        """
        if count == 1 and self._shared is None:
            return []
        self._draws += 1
        if not shared:
            return seeds(count, self.number, self._draws)
        if self._shared is None:
            self._shared = seeds(1, self.number)[0]
        return [self._shared] * count
