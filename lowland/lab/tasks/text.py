"""The base class of tasks with labelled texts: an encoder from scratch or a pretrained one, and cross-entropy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from lowland.core import checks
from lowland.core.errors import ArgumentError, UnknownNameError
from lowland.lab.data import tokens
from lowland.lab.data.tables import LabelledTexts
from lowland.lab.data.texts import Texts
from lowland.lab.metric import Metric
from lowland.lab.models.encoder import ENCODERS, encoder
from lowland.lab.models.pretrained import classifier, digest, encoded, folder_of, verified
from lowland.lab.recipe import Recipe
from lowland.lab.task import Task
from lowland.lab.tasks.classification import ACCURACY, losses, scores
from lowland.lab.tasks.defaults import TEXTS
from lowland.lab.tasks.groups import without_decay_of_vectors


@dataclass(frozen=True, kw_only=True)
class TextClassification(Task):
    """Classification of texts, or of pairs of texts, by a transformer.

    It begins with random weights. Its tokenizer is trained on the texts of the training part, without labels, and on no
    text of the other parts of the data. With ``--validation`` it also sees the texts that are held out of the training
    part. Or it is a pretrained model of transformers with a new head, and its own tokenizer reads the texts::

        lowland compare --task sst2:pretrained=distilbert-base-uncased --methods plain sam

    Args:
        vocab: The largest number of tokens, >= 259.
        length: The largest number of tokens of an example, with its marks; longer texts are cut at their ends.
        lowercase: Whether capital letters are read as small ones.
        dropout: The fraction of features that are set to 0 in training, in [0, 1).
        pretrained: A pretrained model, by its name on the Hugging Face Hub or by its folder; vocab, lowercase and
            dropout are then its own.
        weights: Hash of the files of the pretrained model, which belongs to the identity of a run; None computes it.
    """

    vocab: int = 4000
    length: int = 128
    lowercase: bool = True
    dropout: float = 0.1
    pretrained: str | None = None
    weights: str | None = None

    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY,)
    classes: ClassVar[int]

    def __post_init__(self) -> None:
        if self.pretrained is not None:
            self._check_pretrained()
        elif self.weights is not None:
            raise ArgumentError(f"weights must be None without pretrained, but is {self.weights!r}; give pretrained")
        checks.integer("vocab", self.vocab, tokens.MARKS + tokens.BYTES, "take a few thousand")
        checks.integer("length", self.length, 5, "take 128")
        checks.one_of("lowercase", self.lowercase, (True, False))
        checks.fraction("dropout", self.dropout)

    def _check_pretrained(self) -> None:
        for name in OF_THE_TOKENIZER:
            own = next(f.default for f in fields(self) if f.name == name)
            if getattr(self, name) != own:
                raise ArgumentError(
                    f"{name} must be left out with pretrained, whose own is used, but is {getattr(self, name)!r}"
                )
        if not isinstance(self.pretrained, str):
            raise ArgumentError(f"pretrained must be a name or a folder, but is {self.pretrained!r}; quote it")
        if self.weights is None:
            object.__setattr__(self, "weights", digest(folder_of(self.pretrained)))

    @property
    def models(self) -> tuple[str, ...]:  # type: ignore[override]
        """The sizes of encoders, or the pretrained model."""
        return tuple(ENCODERS) if self.pretrained is None else (PRETRAINED,)

    @abstractmethod
    def labelled(self, root: Path | None) -> Mapping[str, LabelledTexts]:
        """The texts with their labels, by part."""

    def datasets(self, root: Path | None) -> Mapping[str, Any]:
        """See :meth:`lowland.lab.task.Task.datasets`."""
        parts = self.labelled(root)
        if self.pretrained is None:
            tokenizer = tokens.trained(tuple(chain.from_iterable(parts["train"].texts)), self.vocab, self.lowercase)
            encode = partial(tokens.encoded, tokenizer)
        else:
            encode = partial(encoded, verified(self.pretrained, self.weights))
        return {name: Texts.of(encode(part.texts, self.length), part.labels) for name, part in parts.items()}

    def model(self, name: str) -> nn.Module:
        """An encoder for these texts; see :func:`lowland.lab.models.encoder.encoder`.

        Or a pretrained model with a new head; see :func:`lowland.lab.models.pretrained.classifier`.
        """
        if self.pretrained is not None:
            if name != PRETRAINED:
                raise UnknownNameError("model", name, self.models)
            return classifier(verified(self.pretrained, self.weights), self.classes)
        return encoder(name, vocab=self.vocab, length=self.length, classes=self.classes, dropout=self.dropout)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The cross-entropy of each example, shape ``(B,)``."""
        return losses(scores(model(batch[0]), self.classes), batch[1], self.classes)

    def training_loss(self, model: nn.Module, batch: Any, recipe: Recipe) -> Tensor:
        """The cross-entropy of each example with the recipe's label smoothing, shape ``(B,)``."""
        logits = scores(model(batch[0]), self.classes)
        return losses(logits, batch[1], self.classes, recipe.label_smoothing)

    def judged(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Losses ``(B,)`` and logits ``(B, classes)`` from one forward pass."""
        logits = scores(model(batch[0]), self.classes)
        return losses(logits, batch[1], self.classes), logits

    def param_groups(self, model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
        """Matrices with weight decay; biases and norms without."""
        return without_decay_of_vectors(model)

    def defaults(self, method: str, model: str) -> Mapping[str, Any]:
        """Fields of methods for which the class's defaults do not suit these networks; see :data:`TEXTS`."""
        return TEXTS.get(method, {}) if self.pretrained is None else {}

    def recipe(self, model: str) -> Recipe:
        """AdamW with warm-up and a cosine schedule; for pretrained models that of :data:`FINE_TUNING`."""
        return Recipe(**(_RECIPE | self.settings(model) if self.pretrained is None else FINE_TUNING))

    def settings(self, model: str) -> dict[str, Any]:
        """The recipe fields of a task that differ from those of the others."""
        return {}


PRETRAINED = "pretrained"  # the name of the only model of a task that has a pretrained one
OF_THE_TOKENIZER = ("vocab", "lowercase", "dropout")
FINE_TUNING: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": 3e-5,
    "weight_decay": 0.01,
    "schedule": "onecycle",
    "warmup": 0.1,
    "epochs": 3,
    "batch_size": 32,
    "clip": 1.0,
}
"""Fine-tuning as of BERT: 3 epochs of batches of 32, a rate of 2e-5 to 5e-5 (Devlin et al., arXiv:1810.04805, A.3)."""

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
