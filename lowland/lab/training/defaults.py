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
        steps_per_epoch: Batches in an epoch, >= 1.
        examples: Size of the training set, >= 1.
        lr: Peak learning rate, > 0.
    """

    steps_per_epoch: int
    examples: int
    lr: float


def method_defaults(method: str, training: Training) -> dict[str, Any]:
    """The fields of a method that a recipe fills where the user leaves them open.

    Args:
        method: Key of the method.
        training: What it is for.
    """
    return FITTED[method](training) if method in FITTED else {}


FITTED: dict[str, Callable[[Training], dict[str, Any]]] = {
    # The release begins with 3 of 200 epochs of full SAM; a shorter training needs a larger part of itself.
    "vsam": lambda t: {"warmup": 0.1},
    "arsam": lambda t: {"warmup": 0.1},
    # The release: one epoch on whole batches, and chances that grow apart over 30 epochs; of its 200 that is 15 %, but
    # a shorter training needs what time it has, 30 %.
    "ausam": lambda t: {"examples": t.examples, "warmup": t.steps_per_epoch, "ramp": 0.3},
    # The paper's script turns to SAM at epoch 150 of 160; trainings here are shorter, so somewhat earlier.
    "late": lambda t: {"start": 0.9},
    # The paper ties the radius to the learning rate, in proportion.
    "gsam": lambda t: {"rho": schedule.follow_lr(0.05, 0.0, lr_high=t.lr)},
}
"""Values that depend on the training, by method; lengths are fractions of it, or an epoch."""
