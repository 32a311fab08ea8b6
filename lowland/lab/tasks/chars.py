"""Tiny Shakespeare: the next character of a text of 1,115,394 characters.

Reference: Karpathy, "The Unreasonable Effectiveness of Recurrent Neural Networks", 2015; the text is in the public
domain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor, nn

from lowland.core import checks
from lowland.core.errors import DataError
from lowland.lab.data import files
from lowland.lab.data.characters import Windows, alphabet, symbols
from lowland.lab.data.tables import decoded
from lowland.lab.metric import Metric
from lowland.lab.models.gpt import GPTS, gpt
from lowland.lab.recipe import Recipe
from lowland.lab.task import Task
from lowland.lab.tasks.defaults import TEXTS
from lowland.lab.tasks.groups import without_decay_of_vectors

SOURCE = "https://github.com/karpathy/char-rnn (data/tinyshakespeare/input.txt)"
PARTS = {"train": (0.0, 0.9), "validation": (0.9, 0.95), "test": (0.95, 1.0)}  # fractions of the text


def _losses(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """The cross-entropy of each character, in nats, (B, T)."""
    return F.cross_entropy(logits.float().mT, targets, reduction="none", label_smoothing=smoothing)


def _nats(logits: Tensor, batch: Any) -> Tensor:
    """The summed cross-entropy of a batch, and its characters, (2,)."""
    losses = _losses(logits, batch[1]).double()
    return torch.stack([losses.sum(), torch.full_like(losses[0, 0], losses.numel())])


BITS = Metric(
    name="bits_per_character",
    update=_nats,
    compute=lambda totals: float(totals[0] / totals[1]) / math.log(2),
    unit="bits",
    higher=False,
)


@dataclass(frozen=True, kw_only=True)
class Chars(Task):
    """The next character of Shakespeare's plays: 90 % for training, 5 % for validation, 5 % for the test.

    The parts follow each other in this order. An example is a window of characters, see
    :class:`lowland.lab.data.characters.Windows`; its loss is the mean over its characters. The first characters of a
    window are predicted from few others, also in the test, so bits per character are comparable only between trainings
    of equal ``context``. Characters that the training part does not have are one symbol, which no training teaches; the
    real text has none.

    Args:
        context: The number of characters of a window, >= 1.
        vocab: The number of symbols, >= 2: one for unknown characters, and those of the training part.
        tied: Whether the model's last layer has the weights of its embedding.
        dropout: The fraction of features that are set to 0 in training, in [0, 1).
    """

    context: int = 128
    vocab: int = 66
    tied: bool = False
    dropout: float = 0.0

    metrics: ClassVar[tuple[Metric, ...]] = (BITS,)
    models: ClassVar[tuple[str, ...]] = tuple(GPTS)

    def __post_init__(self) -> None:
        checks.integer("context", self.context, 1, "take 128")
        checks.integer("vocab", self.vocab, 2, "take the characters of the training part and one more")
        checks.one_of("tied", self.tied, (True, False))
        checks.fraction("dropout", self.dropout)

    def text(self, root: Path | None) -> str:
        """Read ``tinyshakespeare/input.txt``; for errors see :func:`files.read`."""
        (content,) = files.read("chars", "tinyshakespeare", ["input.txt"], root, SOURCE)
        return decoded("chars", "tinyshakespeare/input.txt", content, SOURCE)

    def datasets(self, root: Path | None) -> Mapping[str, Any]:
        """See :meth:`lowland.lab.task.Task.datasets`."""
        text = self.text(root)
        parts = {name: text[round(start * len(text)) : round(end * len(text))] for name, (start, end) in PARTS.items()}
        characters = alphabet(parts["train"])
        if len(characters) >= self.vocab:
            raise DataError(
                f"chars: the training part must have at most {self.vocab - 1} different characters, vocab − 1, but has "
                f"{len(characters)}; take vocab={len(characters) + 1}"
            )
        return {name: Windows(symbols(part, characters), self.context) for name, part in parts.items()}

    def model(self, name: str) -> nn.Module:
        """A language model for these characters; see :func:`lowland.lab.models.gpt.gpt`."""
        return gpt(name, vocab=self.vocab, context=self.context, tied=self.tied, dropout=self.dropout)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean cross-entropy of each window's characters, in nats, shape ``(B,)``."""
        return _losses(model(batch[0]), batch[1]).mean(1)

    def training_loss(self, model: nn.Module, batch: Any, recipe: Recipe) -> Tensor:
        """The loss of each window with the recipe's label smoothing, shape ``(B,)``."""
        return _losses(model(batch[0]), batch[1], recipe.label_smoothing).mean(1)

    def judged(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Losses ``(B,)`` and logits ``(B, context, vocab)`` from one forward pass."""
        logits = model(batch[0])
        return _losses(logits, batch[1]).mean(1), logits

    def param_groups(self, model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
        """Matrices with weight decay; norms without."""
        return without_decay_of_vectors(model)

    def defaults(self, method: str, model: str) -> Mapping[str, Any]:
        """Fields of methods for which the class's defaults do not suit these networks; see :data:`TEXTS`."""
        return TEXTS.get(method, {})

    def recipe(self, model: str) -> Recipe:
        """AdamW with warm-up and a cosine schedule."""
        return Recipe(
            optimizer="adamw",
            lr=3e-3 if model == "gpt-nano" else 1e-3,
            weight_decay=0.1,
            schedule="cosine",
            warmup=0.1,
            epochs=10,
            batch_size=32,
            clip=1.0,
        )
