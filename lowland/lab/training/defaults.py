"""What a recipe fills in where the user leaves a method's fields open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lowland.core import schedule


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the defaults of a method depend on.

    Args:
        steps: Length of the training, as far as it can be told before, >= 1.
        steps_per_epoch: Batches in an epoch, >= 1.
        examples: Size of the training set, >= 1.
        lr: Peak learning rate, > 0.
    """

    steps: int
    steps_per_epoch: int
    examples: int
    lr: float

    def epochs(self, most: float, share: float) -> int:
        """The steps of ``most`` epochs, or of a share of the training where that is shorter."""
        return round(min(most * self.steps_per_epoch, share * self.steps))


def method_defaults(method: str, training: Training) -> dict[str, Any]:
    """The fields of a method that a recipe fills where the user leaves them open.

    Args:
        method: Key of the method.
        training: What it is for.
    """
    return FITTED[method](training) if method in FITTED else {}


def _refreshes(training: Training) -> dict[str, Any]:
    # The release begins with 3 of 200 epochs of full SAM; a training below 20 epochs with a tenth of itself.
    share = 1.0 if training.steps >= 20 * training.steps_per_epoch else 0.1
    return {"warmup": training.epochs(3, share)}


FITTED: dict[str, Callable[[Training], dict[str, Any]]] = {
    "vsam": _refreshes,
    "arsam": _refreshes,
    # The release: one epoch on whole batches, and chances that grow apart over 30 epochs; of its 200 that is 15 %, but
    # a training below 100 epochs needs what time it has, 30 %.
    "ausam": lambda t: {"examples": t.examples, "warmup": t.steps_per_epoch, "ramp": t.epochs(30, 0.3)},
    # The threshold moves from l2 to l1 over the whole training.
    "ae-sam": lambda t: {"total": t.steps},
    # The paper's script turns to SAM at epoch 150 of 160; trainings here are shorter, so somewhat earlier.
    "late": lambda t: {"start": 0.9, "total": t.steps},
    # The paper ties the radius to the learning rate, in proportion.
    "gsam": lambda t: {"rho": schedule.follow_lr(0.05, 0.0, lr_high=t.lr)},
}
"""Values that depend on the training, by method."""
