"""What tasks with labelled images have in common: cross-entropy, accuracy, label noise, and models by name."""

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
from lowland.core.errors import ArgumentError
from lowland.lab import models
from lowland.lab.data.images import ImageSet
from lowland.lab.data.noise import noisy
from lowland.lab.metric import Metric
from lowland.lab.recipe import Recipe, is_transformer
from lowland.lab.task import Task
from lowland.lab.tasks.defaults import TUNED


def _hits(logits: Tensor, batch: Any) -> Tensor:
    return torch.stack([(logits.argmax(1) == batch[1]).sum(), torch.tensor(len(batch[1]), device=logits.device)])


ACCURACY = Metric(name="accuracy", update=_hits, unit="%", scale=100)


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Images with labels.

    Args:
        noise: Share of wrong training labels, in [0, 1); ``asymmetric`` counts it within the classes concerned.
        noise_kind: symmetric: any other class; asymmetric: the class that it is easily mistaken for.
        noise_seed: Which labels are wrong; None draws them from the run's seed.
    """

    noise: float = 0.0
    noise_kind: Literal["symmetric", "asymmetric"] = "symmetric"
    noise_seed: int | None = None

    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY,)
    shape: ClassVar[tuple[int, int, int]]
    classes: ClassVar[int]

    def __post_init__(self) -> None:
        checks.one_of("noise_kind", self.noise_kind, ("symmetric", "asymmetric"))
        if isinstance(self.noise, bool) or not isinstance(self.noise, int | float) or not 0 <= self.noise < 1:
            raise ArgumentError(
                f"noise must be in [0, 1), but is {self.noise!r}; it is the share of wrong labels, such as 0.2"
            )

    @abstractmethod
    def images(self, root: Path | None) -> ImageSet:
        """The images with their right labels."""

    def datasets(self, root: Path | None) -> Mapping[str, Any]:
        """See :meth:`lowland.lab.task.Task.datasets`."""
        found = self.images(root)
        return (noisy(found, self.noise, self.noise_kind, self.noise_seed or 0) if self.noise else found).parts()

    def seeded(self, seed: int) -> Classification:
        """With wrong labels that are drawn from the seed, where there are any."""
        return replace(self, noise_seed=seed) if self.noise and self.noise_seed is None else self

    def model(self, name: str) -> nn.Module:
        """A network for these images: lowland's own, or one of torchvision or timm."""
        return models.make(name, self.shape, self.classes)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Cross-entropy, one per example."""
        return F.cross_entropy(model(batch[0]).float(), batch[1], reduction="none")

    def training_loss(self, model: nn.Module, batch: Any, recipe: Recipe) -> Tensor:
        """Cross-entropy with the recipe's label smoothing."""
        logits = model(batch[0]).float()
        return F.cross_entropy(logits, batch[1], reduction="none", label_smoothing=recipe.label_smoothing)

    def judged(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Both from one forward pass."""
        logits = model(batch[0]).float()
        return F.cross_entropy(logits, batch[1], reduction="none"), logits

    def recipe(self, model: str) -> Recipe:
        """SGD with one cycle; AdamW with a cosine for transformers."""
        settings = self.settings(model)
        return Recipe(**(settings | _TRANSFORMER if is_transformer(model) else settings))

    def settings(self, model: str) -> dict[str, Any]:
        """What of the recipe differs from its defaults, for networks without attention."""
        if model == "mlp":
            return {}
        return {"channels_last": True, "precision": "auto"}

    def defaults(self, method: str, model: str) -> Mapping[str, Any]:
        """Radii and shares that small networks without attention train well with."""
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
