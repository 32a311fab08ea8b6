"""Defaults of methods' fields that depend on the training, for fields that the user does not set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lowland.core import schedule


@dataclass(frozen=True, kw_only=True)
class Training:
    """The properties of a training on which the defaults of methods depend.

    Args:
        steps_per_epoch: The number of batches in an epoch, >= 1.
        examples: The number of positions of the training set, >= 1.
        lr: The peak learning rate, > 0.
    """

    steps_per_epoch: int
    examples: int
    lr: float


def method_defaults(method: str, training: Training) -> dict[str, Any]:
    """The default values of a method's fields for one training; empty if none depends on it.

    Args:
        method: The key of the method.
        training: The training.
    """
    return FITTED[method](training) if method in FITTED else {}


FITTED: dict[str, Callable[[Training], dict[str, Any]]] = {
    # The release starts with 3 of 200 epochs of SAM in every step; a shorter training needs a larger fraction.
    "vsam": lambda t: {"warmup": 0.1},
    "arsam": lambda t: {"warmup": 0.1},
    # The release trains one epoch on full batches, and increases the differences between the probabilities of examples
    # over 30 of 200 epochs, 15 %; a shorter training needs a larger fraction.
    "ausam": lambda t: {"examples": t.examples, "warmup": t.steps_per_epoch, "ramp": 0.3},
    # The paper's script switches to SAM at epoch 150 of 160; trainings here are shorter, so they switch earlier.
    "late": lambda t: {"start": 0.9},
    # The release searches in the first step of every epoch.
    "xsam": lambda t: {"every": t.steps_per_epoch},
    # In the paper the radius is proportional to the learning rate.
    "gsam": lambda t: {"rho": schedule.follow_lr(0.05, 0.0, lr_high=t.lr)},
}
"""The defaults that depend on the training, by method. Lengths are fractions of the training, or one epoch in steps."""
