"""The base class of tasks with labelled texts: a tokenizer of their own, an encoder from scratch, cross-entropy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor, nn

from lowland.core import checks
from lowland.lab.data import tokens
from lowland.lab.data.tables import LabelledTexts
from lowland.lab.data.texts import Texts
from lowland.lab.metric import Metric
from lowland.lab.models.encoder import ENCODERS, encoder
from lowland.lab.recipe import Recipe
from lowland.lab.task import Task
from lowland.lab.tasks.classification import ACCURACY
from lowland.lab.tasks.defaults import TEXTS
from lowland.lab.tasks.groups import without_decay_of_vectors


@dataclass(frozen=True, kw_only=True)
class TextClassification(Task):
    """Classification of texts, or of pairs of texts, by a transformer that begins with random weights.

    The tokenizer is trained on the texts of the training part, without labels, and on no text of the other parts of
    the data. With ``--validation`` it also sees the texts that are held out of the training part.

    Args:
        vocab: The largest number of tokens, >= 259.
        length: The largest number of tokens of an example, with its marks; longer texts are cut at their ends.
        lowercase: Whether capital letters are read as small ones.
        dropout: The fraction of features that are set to 0 in training, in [0, 1).
    """

    vocab: int = 4000
    length: int = 128
    lowercase: bool = True
    dropout: float = 0.1

    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY,)
    models: ClassVar[tuple[str, ...]] = tuple(ENCODERS)
    classes: ClassVar[int]

    def __post_init__(self) -> None:
        checks.integer("vocab", self.vocab, tokens.MARKS + tokens.BYTES, "take a few thousand")
        checks.integer("length", self.length, 5, "take 128")
        checks.one_of("lowercase", self.lowercase, (True, False))
        checks.fraction("dropout", self.dropout)

    @abstractmethod
    def labelled(self, root: Path | None) -> Mapping[str, LabelledTexts]:
        """The texts with their labels, by part."""

    def datasets(self, root: Path | None) -> Mapping[str, Any]:
        """See :meth:`lowland.lab.task.Task.datasets`."""
        parts = self.labelled(root)
        tokenizer = tokens.trained(tuple(chain.from_iterable(parts["train"].texts)), self.vocab, self.lowercase)
        return {
            name: Texts.of(tokens.encoded(tokenizer, part.texts, self.length), part.labels)
            for name, part in parts.items()
        }

    def model(self, name: str) -> nn.Module:
        """An encoder for these texts; see :func:`lowland.lab.models.encoder.encoder`."""
        return encoder(name, vocab=self.vocab, length=self.length, classes=self.classes, dropout=self.dropout)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The cross-entropy of each example, shape ``(B,)``."""
        return F.cross_entropy(model(batch[0]).float(), batch[1], reduction="none")

    def training_loss(self, model: nn.Module, batch: Any, recipe: Recipe) -> Tensor:
        """The cross-entropy of each example with the recipe's label smoothing, shape ``(B,)``."""
        logits = model(batch[0]).float()
        return F.cross_entropy(logits, batch[1], reduction="none", label_smoothing=recipe.label_smoothing)

    def judged(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Losses ``(B,)`` and logits ``(B, classes)`` from one forward pass."""
        logits = model(batch[0]).float()
        return F.cross_entropy(logits, batch[1], reduction="none"), logits

    def param_groups(self, model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
        """Matrices with weight decay; biases and norms without."""
        return without_decay_of_vectors(model)

    def defaults(self, method: str, model: str) -> Mapping[str, Any]:
        """Fields of methods for which the class's defaults do not suit these networks; see :data:`TEXTS`."""
        return TEXTS.get(method, {})

    def recipe(self, model: str) -> Recipe:
        """AdamW with warm-up and a cosine schedule."""
        return Recipe(**(_RECIPE | self.settings(model)))

    def settings(self, model: str) -> dict[str, Any]:
        """The recipe fields of a task that differ from those of the others."""
        return {}


_RECIPE: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.05,
    "schedule": "cosine",
    "warmup": 0.1,
    "epochs": 10,
    "batch_size": 32,
    "clip": 1.0,
}
