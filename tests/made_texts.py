"""Text tasks with data made up here, for tests whose processes cannot share a fixture; and their trainings on ranks."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from text_files import play, sentence

from lowland.lab.budget import Budget
from lowland.lab.config import RunConfig
from lowland.lab.data.tables import LabelledTexts
from lowland.lab.recipe import Recipe
from lowland.lab.tasks.chars import Chars
from lowland.lab.tasks.text import TextClassification
from lowland.lab.training import run

RECIPE = Recipe(optimizer="adamw", lr=1e-3, weight_decay=0.05, epochs=2, batch_size=8, clip=1.0)


def labelled(count: int, seed: int, texts: int) -> LabelledTexts:
    draw = random.Random(seed)
    labels = tuple(draw.randint(0, 1) for _ in range(count))
    return LabelledTexts(tuple(tuple(sentence(draw, label) for _ in range(texts)) for label in labels), labels)


@dataclass(frozen=True, kw_only=True)
class Pairs(TextClassification):
    """51 pairs of sentences: six batches of 8, and three pairs that an epoch leaves out."""

    vocab: int = 300
    length: int = 48
    classes: ClassVar[int] = 2

    def labelled(self, root: Path | None) -> Mapping[str, LabelledTexts]:
        return {"train": labelled(51, 1, 2), "test": labelled(20, 2, 2)}


@dataclass(frozen=True, kw_only=True)
class Play(Chars):
    """50 windows of 16 characters for training."""

    context: int = 16

    def text(self, root: Path | None) -> str:
        return play(900)


TASKS = {"pairs": (Pairs, "encoder-tiny"), "play": (Play, "gpt-nano")}


def config(kind: str, method: str, dropout: float, **changes: Any) -> RunConfig:
    """Two epochs of 6 steps."""
    task, model = TASKS[kind]
    base = RunConfig(
        task=task(dropout=dropout), model=model, method=method, seed=0, recipe=RECIPE, budget=Budget(limit=12),
        device="cpu",
    )  # fmt: skip
    return replace(base, **changes)


@contextmanager
def several() -> Any:
    """What torchrun tells its processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", str(torch.distributed.get_rank()))
        patch.setenv("WORLD_SIZE", str(torch.distributed.get_world_size()))
        yield


def trained(folder: Path, kind: str, method: str, changes: dict[str, Any]) -> Any:
    """Train without dropout, on all ranks if there are several."""
    made = config(kind, method, 0.0, **changes)
    if not torch.distributed.is_initialized():
        return run.train(made, folder)
    with several():
        return run.train(made, folder)
