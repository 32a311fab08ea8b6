"""What a run may spend, so that methods are compared at an equal price."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lowland.core import checks
from lowland.core.errors import ArgumentError

Kind = Literal["steps", "gradients", "seconds"]
KINDS: tuple[Kind, ...] = ("steps", "gradients", "seconds")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """An amount of one resource; a run ends with the step that spends the last of it.

    Args:
        kind: ``steps`` of the optimizer, ``gradients`` in full-batch equivalents (plain training takes one a
            step, SAM two), or ``seconds`` of training, evaluation excluded. Under ``seconds`` the learning
            rate follows the clock, so such a run cannot be repeated bit for bit.
        limit: How much, > 0.

    Example:
        >>> Budget(kind="gradients", limit=100).progress(steps=25, gradients=50, seconds=3)
        0.5
    """

    kind: Kind = "steps"
    limit: float

    def __post_init__(self) -> None:
        checks.one_of("budget", self.kind, KINDS)
        if not 0 < self.limit < math.inf:
            raise ArgumentError(
                f"limit must be a number > 0, but is {self.limit!r}; give the {self.kind} that one run may take"
            )

    def spent(self, *, steps: int, gradients: float, seconds: float) -> float:
        """How much of the budgeted resource has been used."""
        return {"steps": float(steps), "gradients": gradients, "seconds": seconds}[self.kind]

    def progress(self, *, steps: int, gradients: float, seconds: float) -> float:
        """The fraction used, in [0, 1]; at 1 the run is over."""
        return min(self.spent(steps=steps, gradients=gradients, seconds=seconds) / self.limit, 1.0)
