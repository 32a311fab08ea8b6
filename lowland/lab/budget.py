"""The budget of a run: steps, gradients or seconds, so that methods are compared at equal cost."""

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
    """An amount of one resource; a run ends with the step that uses up the budget.

    Args:
        kind: ``steps`` of the optimizer, ``gradients`` in full-batch equivalents (plain training computes one per
            step, SAM two), or ``seconds`` of training without evaluation. Under ``seconds`` the learning rate depends
            on the clock, so a run cannot be repeated bit for bit.
        limit: The amount, > 0.

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
                f"limit must be a number > 0, but is {self.limit!r}; give the {self.kind} that one run may use"
            )

    def spent(self, *, steps: int, gradients: float, seconds: float) -> float:
        """The used amount of the budgeted resource."""
        return {"steps": float(steps), "gradients": gradients, "seconds": seconds}[self.kind]

    def progress(self, *, steps: int, gradients: float, seconds: float) -> float:
        """The used fraction of the budget, in [0, 1]; the run ends at 1."""
        return min(self.spent(steps=steps, gradients=gradients, seconds=seconds) / self.limit, 1.0)
