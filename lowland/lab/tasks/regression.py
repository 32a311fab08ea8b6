"""The base class of tasks whose target is a number: squared error, R² and the root of the mean squared error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowland.core.errors import ArgumentError, UnknownNameError
from lowland.lab.metric import Metric
from lowland.lab.models.mlp import mlp
from lowland.lab.task import Task
from lowland.lab.tasks.defaults import TUNED


def _moments(values: Tensor, batch: Any) -> Tensor:
    """The squared errors, the number of targets, and the first two moments of the targets, each summed."""
    errors, targets = (values - batch[1]).double(), batch[1].double()
    return torch.stack([errors.square().sum(), torch.ones_like(errors).sum(), targets.sum(), targets.square().sum()])


def _explained(totals: Tensor) -> float:
    errors, count, sums, squares = (float(total) for total in totals)
    variance = squares - sums**2 / count  # of the targets, times their number
    return 1 - errors / variance if variance > 0 else math.nan


def _squares(values: Tensor, batch: Any) -> Tensor:
    errors = ((values - batch[1]) * batch[2]).double()
    return torch.stack([errors.square().sum(), torch.ones_like(errors).sum()])


R2 = Metric(name="r2", update=_moments, compute=_explained)
"""The fraction of the targets' variance that is explained: 1 is perfect, 0 is as good as their mean."""

RMSE = Metric(name="rmse", update=_squares, compute=lambda totals: math.sqrt(totals[0] / totals[1]), higher=False)
"""The root of the mean squared error, in the unit of the data."""


def perceptron(name: str, features: int, outputs: int, width: int) -> nn.Module:
    """A perceptron with two hidden layers for rows (B, features).

    Raises:
        UnknownNameError: ``name`` is not mlp.
    """
    if name != "mlp":
        raise UnknownNameError("model", name, ["mlp"])
    return mlp((features, 1, 1), outputs, width)


def numbers(model: nn.Module, batch: Any) -> Tensor:
    """The model's outputs, (B, 1) or (B,), as numbers (B,).

    Raises:
        ArgumentError: They have another shape, which would be broadcast against the targets.
    """
    values, size = model(batch[0]), len(batch[1])
    if not isinstance(values, Tensor) or values.shape not in {(size, 1), (size,)}:
        given = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise ArgumentError(
            f"model must return one number for each of {size} examples, shape ({size}, 1) or ({size},), but returned "
            f"{given}; give its last layer one output"
        )
    return values.float().reshape(size)


@dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """Regression of one number, from batches (inputs, standardized targets, unit of each target)."""

    metrics: ClassVar[tuple[Metric, ...]] = (R2, RMSE)
    models: ClassVar[tuple[str, ...]] = ("mlp",)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The squared error of each standardized target, shape ``(B,)``."""
        return self.judged(model, batch)[0]

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        """The standardized targets, as the model sees them, shape ``(B,)``."""
        return numbers(model, batch)

    def judged(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Losses and predictions, each (B,), from one forward pass."""
        values = numbers(model, batch)
        return (values - batch[1]).square(), values

    def defaults(self, method: str, model: str) -> Mapping[str, Any]:
        """Fields of methods for which the class's defaults do not suit small networks; see :data:`TUNED`."""
        return TUNED.get(method, {})
