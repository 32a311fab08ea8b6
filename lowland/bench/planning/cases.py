"""The trainings whose steps are predicted and measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lowland.core.batch import Batches
from lowland.lab.models import build
from lowland.lab.models.encoder import encoder
from lowland.planner.layout import Layout
from lowland.planner.subject import Subject

CLASSES, VOCABULARY, LENGTH = 10, 500, 32


@dataclass(frozen=True)
class Case:
    """A model and the batches that its steps are measured on.

    Args:
        model: Makes the model.
        inputs: Makes the inputs of this many examples.
        batches: The examples of a step, one number for each table.
        adam: Whether AdamW trains the model in place of SGD.
    """

    model: Callable[[], nn.Module]
    inputs: Callable[[int, torch.Generator], Tensor]
    batches: tuple[int, ...]
    adam: bool = False

    def subject(self, batch: int) -> Subject:
        """The training with this batch."""
        generator = torch.Generator().manual_seed(0)
        model = self.model()
        inputs = self.inputs(batch, generator)
        targets = torch.randint(CLASSES, (batch,), generator=generator)
        optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(model.parameters(), lr=1e-3)
            if self.adam
            else torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        )
        return Subject(model, [optimizer], loss_fn, (inputs, targets, torch.arange(batch)), Batches())


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    """The cross entropy of each example, shape ``(B,)``."""
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def _images(name: str, side: int, channels: int = 3) -> dict[str, Any]:
    shape = (channels, side, side)
    return {
        "model": lambda: build(name, shape=shape, classes=CLASSES, seed=0),
        "inputs": lambda n, generator: torch.randn(n, *shape, generator=generator),
    }


def _text() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return encoder("encoder-tiny", vocab=VOCABULARY, length=LENGTH, classes=CLASSES, dropout=0.0)


CASES: dict[str, Case] = {
    "perceptron": Case(**_images("mlp", 8, 1), batches=(64, 256)),
    "convnet": Case(**_images("convnet", 28, 1), batches=(32, 64)),
    "resnet20": Case(**_images("resnet20-w8", 32), batches=(16, 32)),
    "encoder": Case(
        _text,
        lambda n, generator: torch.randint(2, VOCABULARY, (n, LENGTH), generator=generator),
        batches=(32, 64),
        adam=True,
    ),
}


def sizes(batch: int, layout: Layout) -> list[int]:
    """The examples of a rank at which passes are timed: none of those that the methods' passes have.

    Methods have passes on a rank's part, on half of it and on a quarter.
    """
    part = batch // layout.data
    chosen = {part * numerator // 16 for numerator in (3, 6, 12, 15, 20)}
    return sorted(n for n in chosen - {part, part // 2, part // 4} if 1 <= n <= batch)
