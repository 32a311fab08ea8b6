"""The base class of tasks with labelled images: cross-entropy, accuracy, label noise, and models by name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor, nn

from lowland.core import checks
from lowland.core.criterion import Criterion
from lowland.core.errors import ArgumentError
from lowland.lab import models
from lowland.lab.data.images import ImageSet, subset
from lowland.lab.data.noise import noisy
from lowland.lab.metric import Metric
from lowland.lab.recipe import Recipe, is_transformer
from lowland.lab.task import Task
from lowland.lab.tasks.defaults import TUNED


def _hits(logits: Tensor, batch: Any) -> Tensor:
    hits = (logits.argmax(1) == batch[1]).sum()
    return torch.stack([hits, torch.full_like(hits, len(batch[1]))])


def scores(outputs: Any, classes: int) -> Tensor:
    """A model's outputs as logits, (B, classes), in fp32.

    Raises:
        ArgumentError: They have another number of dimensions.
    """
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        raise _wrong_outputs(outputs, classes)
    return outputs.float()


def losses(logits: Tensor, targets: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """The cross-entropy of each example, shape ``(B,)``.

    Raises:
        ArgumentError: There are fewer logits than classes.
    """
    try:
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    except IndexError:  # a target is out of bounds
        raise _wrong_outputs(logits, classes) from None


def _wrong_outputs(outputs: Any, classes: int) -> ArgumentError:
    given = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
    return ArgumentError(
        f"model must return logits of shape (B, {classes}), one for each class, but returned {given}; give its last "
        f"layer {classes} outputs"
    )


ACCURACY = Metric(name="accuracy", update=_hits, unit="%", scale=100)


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Classification of images.

    Args:
        noise: Fraction of wrong training labels, in [0, 1); for ``asymmetric``, of the labels in classes that are
            replaced.
        noise_kind: symmetric replaces a label by any other class, asymmetric by one class: of CIFAR-10 the class that
            looks most similar, of other images the next one. A validation part that is held out of the training part
            has as many wrong labels.
        noise_seed: Seed of the wrong labels, >= 0; None uses the run's seed.
        examples: Number of training images, as many of each class as there are, >= the number of classes; None uses
            all. A smaller number is a part of a larger one, and every seed has the same images.
    """

    noise: float = 0.0
    noise_kind: Literal["symmetric", "asymmetric"] = "symmetric"
    noise_seed: int | None = None
    examples: int | None = None

    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY,)
    shape: ClassVar[tuple[int, int, int]]
    classes: ClassVar[int]

    def __post_init__(self) -> None:
        checks.one_of("noise_kind", self.noise_kind, ("symmetric", "asymmetric"))
        if isinstance(self.noise, bool) or not isinstance(self.noise, int | float) or not 0 <= self.noise < 1:
            raise ArgumentError(
                f"noise must be in [0, 1), but is {self.noise!r}; it is the fraction of wrong labels, such as 0.2"
            )
        if self.noise_seed is not None:
            checks.integer("noise_seed", self.noise_seed, 0, "None uses the run's seed")
        if self.examples is not None:
            checks.integer("examples", self.examples, self.classes, "None takes all; every class needs one")

    @abstractmethod
    def images(self, root: Path | None) -> ImageSet:
        """The images with their labels before label noise."""

    def datasets(self, root: Path | None) -> Mapping[str, Any]:
        """See :meth:`lowland.lab.task.Task.datasets`."""
        images = self.images(root)
        if self.examples is not None:
            images = subset(images, self.examples)
        return (noisy(images, self.noise, self.noise_kind, self.noise_seed or 0) if self.noise else images).parts()

    def seeded(self, seed: int) -> Classification:
        """The task with the run's seed as the seed of its label noise, if ``noise_seed`` is None."""
        return replace(self, noise_seed=seed) if self.noise and self.noise_seed is None else self

    def model(self, name: str) -> nn.Module:
        """A network for these images, from lowland, torchvision or timm; see :func:`lowland.lab.models.make`."""
        return models.make(name, self.shape, self.classes)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The cross-entropy of each example, shape ``(B,)``."""
        return losses(self._logits(model, batch), batch[1], self.classes)

    def training_loss(self, model: nn.Module, batch: Any, recipe: Recipe) -> Tensor:
        """The cross-entropy of each example with the recipe's label smoothing, shape ``(B,)``."""
        return losses(self._logits(model, batch), batch[1], self.classes, recipe.label_smoothing)

    def training_criterion(self, recipe: Recipe) -> Criterion:
        """The same in two parts: the logits, and their cross-entropy."""
        return Criterion(
            self._logits, lambda logits, batch: losses(logits, batch[1], self.classes, recipe.label_smoothing)
        )

    def _logits(self, model: nn.Module, batch: Any) -> Tensor:
        return scores(model(batch[0]), self.classes)

    def judged(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Losses ``(B,)`` and logits ``(B, classes)`` from one forward pass."""
        logits = self._logits(model, batch)
        return losses(logits, batch[1], self.classes), logits

    def recipe(self, model: str) -> Recipe:
        """SGD with a one-cycle schedule; for transformers AdamW with a cosine schedule."""
        settings = self.settings(model)
        if is_transformer(model):
            settings |= _TRANSFORMER
        if model == "vit-tiny":  # its small products take 1.9 times as long in bf16 on a CPU with bf16 instructions
            settings["precision"] = "fp32"
        return Recipe(**settings)

    def settings(self, model: str) -> dict[str, Any]:
        """The recipe fields that differ from the defaults, for networks without attention."""
        if model == "mlp":
            return {}
        return {"channels_last": True, "precision": "auto"}

    def defaults(self, method: str, model: str) -> Mapping[str, Any]:
        """Fields of methods for which the class's defaults do not suit small networks; see :data:`TUNED`."""
        return {} if is_transformer(model) else TUNED.get(method, {})


_TRANSFORMER: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.05,
    "schedule": "cosine",
    "warmup": 0.1,
    "channels_last": False,
    "clip": 1.0,
}
