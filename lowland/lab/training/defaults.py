"""What a recipe fills in where the user leaves a method's fields open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lowland.core import schedule
from lowland.lab.recipe import is_transformer


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the defaults of a method depend on.

    Args:
        model: Key or name of the model.
        steps_per_epoch: Batches in an epoch, >= 1.
        examples: Size of the training set, >= 1.
        lr: Peak learning rate, > 0.
    """

    model: str
    steps_per_epoch: int
    examples: int
    lr: float


def method_defaults(method: str, training: Training) -> dict[str, Any]:
    """The fields of a method that a recipe fills where the user leaves them open.

    Args:
        method: Key of the method.
        training: What it is for.
    """
    filled = {} if is_transformer(training.model) else dict(TUNED.get(method, {}))
    return filled | (FITTED[method](training) if method in FITTED else {})


TUNED: dict[str, dict[str, Any]] = {
    # Published for vision transformers is 0.7; on small CNNs nothing was gained above 0.3 (arXiv 2401.12033, A.14).
    "looksam": {"alpha": 0.2},
    # Published for WRN-16-4 and ResNet-50 is 3, which throws small networks off: 21.4 % after 2 epochs of CIFAR-10 with
    # ResNet-20, where plain has 73.0 % and 0.3 has 72.8 % (docs/results.md).
    "momentum-sam": {"rho": 0.3},
    # Published for fine-tuning is 0.2. From scratch each tensor then takes a fifth of the steps: a point below plain on
    # clean digits (96.8 % against 97.8 %), where 0.9 on 2 epochs of CIFAR-10 keeps up (docs/results.md).
    "sl-sam": {"s": 0.9},
}
"""Values for small networks without attention, by method, where the class's own are for something else."""


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
