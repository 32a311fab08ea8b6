"""What a task is: data, model and loss, and how well a model does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from lowland.core.cutting import Cutter
from lowland.core.loss import Loss
from lowland.lab.metric import Metric
from lowland.lab.recipe import Recipe


@runtime_checkable
class Dataset(Protocol):
    """Examples that batches are taken from, by their positions."""

    def __len__(self) -> int:
        """How many examples there are."""

    def batch(self, index: Tensor, generator: torch.Generator | None) -> Any:
        """The examples at these positions, as the model and the loss take them.

        Args:
            index: Positions, int64 of shape ``(B,)``.
            generator: Random numbers for augmentation; None where examples must come as they are, for evaluation.
        """


class Task(ABC):
    """Data, model and loss; make it a frozen dataclass, whose fields are part of its text and of a run's identity.

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
        metrics: What is measured beside the loss; the first is the headline of a comparison. Without any, the loss is.
        models: Names of models that the task makes; the first is the default.
        cut: How batches are cut over ranks and by methods; None cuts tensors along dimension 0.
    """

    metrics: ClassVar[tuple[Metric, ...]] = ()
    models: ClassVar[tuple[str, ...]] = ("default",)
    cut: ClassVar[Cutter | None] = None

    @abstractmethod
    def datasets(self, root: Path | None) -> Mapping[str, Any]:
        """The parts "train" and "test", and "validation" where the data has one.

        A part is a :class:`Dataset`, a torch ``Dataset`` whose items are collated, or a ``DataLoader``, of which data
        set, ``collate_fn`` and ``num_workers`` are used.

        Args:
            root: Folder of data files, from ``--data`` or ``LOWLAND_DATA``; None where neither is given.
        """

    @abstractmethod
    def model(self, name: str) -> nn.Module:
        """A fresh model; its random numbers are seeded by the caller.

        Args:
            name: What ``--model`` says, by default the first of ``models``.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor | Loss:
        """The loss: one per example, shape ``(B,)``, a mean, shape ``()``, or a :class:`lowland.Loss`."""

    def predict(self, model: nn.Module, batch: Any) -> Any:
        """What the metrics see; by default what the model says to the batch's first entry."""
        return model(batch[0])

    def recipe(self, model: str) -> Recipe:
        """How the model is trained, the same for every method; it should train *plain* well."""
        return Recipe()

    def param_groups(self, model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer; by default one with all trainable parameters."""
        return [{"params": [p for p in model.parameters() if p.requires_grad]}]

    def training_loss(self, model: nn.Module, batch: Any, recipe: Recipe) -> Tensor | Loss:
        """The loss that is trained on, where the recipe changes it, as label smoothing does; by default ``loss``."""
        return self.loss(model, batch)

    def judged(self, model: nn.Module, batch: Any) -> tuple[Tensor | Loss, Any]:
        """Loss and prediction of a batch in evaluation; override it where one forward pass gives both."""
        return self.loss(model, batch), self.predict(model, batch) if self.metrics else None

    def seeded(self, seed: int) -> Self:
        """The task as a run with this seed sees it, such as with label noise drawn from the seed."""
        return self

    def defaults(self, method: str, model: str) -> Mapping[str, Any]:
        """Fields of a method that the task fills where the user leaves them open, by the method's key."""
        return {}
