"""The base class of tasks: data, model, loss and metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from lowland.core.criterion import Criterion
from lowland.core.cutting import Cutter
from lowland.core.errors import ArgumentError
from lowland.core.loss import Loss
from lowland.lab.metric import Metric
from lowland.lab.recipe import Recipe


@runtime_checkable
class Dataset(Protocol):
    """Examples that are read in batches, by their positions."""

    def __len__(self) -> int:
        """The number of examples."""

    def batch(self, index: Tensor, generator: torch.Generator | None) -> Any:
        """The batch of the examples at these positions, as the task's loss takes it.

        Args:
            index: Positions, int64 of shape ``(B,)``.
            generator: The random numbers of the augmentation; None for evaluation, without augmentation.
        """


class Task(ABC):
    """Data, model and loss. A subclass is a frozen dataclass; its fields are part of its text and of a run's identity.

    ::

        @dataclass(frozen=True, kw_only=True)
        class Pose(lab.Task):
            joints: int = 17
            metrics = (PCK,)

            def datasets(self, root):
                return {"train": ..., "test": ...}

            def model(self, name):
                return Net(self.joints)

            def loss(self, model, batch):
                return mse_loss(model(batch[0]), batch[1], reduction="none").mean((1, 2))

    Attributes:
        metrics: The metrics that are measured besides the loss; the first is the headline of a comparison. Without
            metrics the loss is the headline.
        models: The names of the models that the task makes; the first is the default.
        cut: The object that cuts batches for ranks and methods; None cuts tensors along dimension 0.
    """

    metrics: ClassVar[tuple[Metric, ...]] = ()
    models: ClassVar[tuple[str, ...]] = ("default",)
    cut: ClassVar[Cutter | None] = None

    @abstractmethod
    def datasets(self, root: Path | None) -> Mapping[str, Any]:
        """The parts "train" and "test" of the data, and "validation" if the data has such a part.

        A part is a :class:`Dataset`, a torch ``Dataset`` whose items are collated, or a ``DataLoader``. Only the data
        set, ``collate_fn`` and ``num_workers`` of a ``DataLoader`` are used.

        Args:
            root: The folder of data files, from ``--data`` or ``LOWLAND_DATA``; None if neither is set.
        """

    @abstractmethod
    def model(self, name: str) -> nn.Module:
        """Make a new model with weights from torch's global random numbers, which the caller seeds.

        Args:
            name: The value of ``--model``, by default the first of ``models``.
        """

    def initialize(self, model: nn.Module) -> nn.Module:
        """The model with which a training begins, made from a new one; by default the new one.

        Override it to load weights, without random numbers. It also gets a model that ``model`` did not make, from a
        file or a package.
        """
        return model

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor | Loss:
        """The loss of a batch: one per example, shape ``(B,)``; a mean, shape ``()``; or a :class:`lowland.Loss`."""

    def predict(self, model: nn.Module, batch: Any) -> Any:
        """The predictions that the metrics get; by default the model's output for the batch's first entry."""
        return model(batch[0])

    def recipe(self, model: str) -> Recipe:
        """The training settings for a model, shared by all methods; choose settings that suit *plain* training."""
        return Recipe()

    def param_groups(self, model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
        """The parameter groups of the optimizer; by default one group with all trainable parameters."""
        return [{"params": [p for p in model.parameters() if p.requires_grad]}]

    def training_loss(self, model: nn.Module, batch: Any, recipe: Recipe) -> Tensor | Loss:
        """The loss that training minimizes, by default ``loss``; override it to apply the recipe's label smoothing.

        Raises:
            ArgumentError: The recipe has a label smoothing, which the default does not apply.
        """
        refuse_smoothing(self, recipe)
        return self.loss(model, batch)

    def training_criterion(self, recipe: Recipe) -> Criterion | None:
        """The training loss in two parts, for methods that need the model's outputs, such as Functional SAM.

        It must give the same losses as ``training_loss``, and is used in its place. None, the default, if the task does
        not have it; such methods are then refused. A subclass that overrides the training loss only has none.
        """
        return None

    def judged(self, model: nn.Module, batch: Any) -> tuple[Tensor | Loss, Any]:
        """Loss and prediction of a batch for evaluation; override it to compute both in one forward pass."""
        return self.loss(model, batch), self.predict(model, batch) if self.metrics else None

    def seeded(self, seed: int) -> Self:
        """The task for a run with this seed, for example with label noise drawn from the seed."""
        return self

    def defaults(self, method: str, model: str) -> Mapping[str, Any]:
        """The task's defaults for a method's fields, which replace the class's defaults.

        Args:
            method: The key of the method.
            model: The name of the model.
        """
        return {}


def refuse_smoothing(task: Task, recipe: Recipe) -> None:
    """Refuse a label smoothing that the task's loss does not have.

    Raises:
        ArgumentError: The recipe has a label smoothing.
    """
    if recipe.label_smoothing:
        raise ArgumentError(
            f"label_smoothing must be 0 for {type(task).__name__}, whose training loss does not apply it, but is "
            f"{recipe.label_smoothing}; leave it out, or override training_loss(model, batch, recipe)"
        )
