from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from lowland.lab.budget import Budget
from lowland.lab.config import RunConfig
from lowland.lab.data.images import Augmentation, ImageSet
from lowland.lab.recipe import Recipe
from lowland.lab.task import Task
from lowland.lab.tasks.classification import Classification
from lowland.lab.training import checkpoint, run


def images(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Small noisy pictures whose class can be seen in one bright row."""
    draw = torch.Generator().manual_seed(seed)
    targets = torch.randint(3, (count,), generator=draw)
    pixels = torch.randint(0, 120, (count, 1, 8, 8), generator=draw, dtype=torch.uint8)
    pixels[torch.arange(count), 0, targets * 2] += 100
    return pixels, targets


@dataclass(frozen=True, kw_only=True)
class Rows(Classification):
    """51 training images: six batches of 8, and three images that an epoch leaves out."""

    shape: ClassVar[tuple[int, int, int]] = (1, 8, 8)
    classes: ClassVar[int] = 3
    models: ClassVar[tuple[str, ...]] = ("mlp", "convnet")

    def images(self, root: Path | None) -> ImageSet:
        (inputs, targets), (test_inputs, test_targets) = images(51, 1), images(20, 2)
        return ImageSet(
            name="rows", train_inputs=inputs, train_targets=targets, clean_targets=targets, test_inputs=test_inputs,
            test_targets=test_targets, classes=3, mean=(60.0,), std=(40.0,), augmentation=Augmentation(padding=1),
        )  # fmt: skip


@pytest.fixture
def task() -> Task:
    """Small noisy pictures."""
    return Rows()


@pytest.fixture
def config() -> RunConfig:
    """Two epochs of 6 steps."""
    recipe = Recipe(lr=0.05, epochs=2, batch_size=8)
    return RunConfig(
        task=Rows(), model="mlp", method="sam", seed=0, recipe=recipe, budget=Budget(limit=12), device="cpu"
    )


class Kill(BaseException):
    """Ends a run as SIGKILL would, as far as files go: nothing more is written."""


@pytest.fixture
def kill():
    """Have the run inside ``with kill(step):`` die right after its checkpoint at that step."""

    @contextmanager
    def at(deadly: int) -> Iterator[None]:
        real = checkpoint.save

        def save(folder: Path, *args, step: int, **options):
            real(folder, *args, step=step, **options)
            if step == deadly:
                raise Kill

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run.checkpoint, "save", save)
            try:
                yield
            except Kill:
                return
            pytest.fail(f"the run never saved a checkpoint at step {deadly}")

    return at
