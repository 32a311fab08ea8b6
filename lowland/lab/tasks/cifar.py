"""CIFAR-10 and CIFAR-100: 50,000 training and 10,000 test photographs of 32 × 32 pixels.

Reference: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lowland.core import checks
from lowland.core.errors import ArgumentError, DataError
from lowland.lab.data import files, human_labels
from lowland.lab.data.images import Augmentation, ImageSet
from lowland.lab.models import WIDTHS
from lowland.lab.recipe import Recipe
from lowland.lab.tasks.classification import Classification

# truck → automobile, bird → airplane, deer → horse, cat ↔ dog: classes that look similar
CONFUSIONS = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html (the python version)"


def load_cifar10(data: Path | None = None) -> ImageSet:
    """Read the images of ``cifar10`` from ``cifar-10-batches-py/``; for errors see :func:`files.read`."""
    train = [f"data_batch_{part}" for part in range(1, 6)]
    parts = _parts("cifar10", "cifar-10-batches-py", [*train, "test_batch"], "labels", data)
    inputs, targets = (torch.cat(tensors) for tensors in zip(*parts[:5], strict=True))
    return ImageSet(
        name="cifar10",
        train_inputs=inputs,
        train_targets=targets,
        clean_targets=targets,
        test_inputs=parts[5][0],
        test_targets=parts[5][1],
        classes=10,
        mean=(125.31, 122.95, 113.87),
        std=(62.99, 62.09, 66.70),
        augmentation=Augmentation(padding=4),
        confusions=CONFUSIONS,
    )


def load_cifar100(data: Path | None = None) -> ImageSet:
    """Read ``cifar100`` with its 100 fine labels from ``cifar-100-python/``; for errors see :func:`files.read`."""
    train, test = _parts("cifar100", "cifar-100-python", ["train", "test"], "fine_labels", data)
    return ImageSet(
        name="cifar100",
        train_inputs=train[0],
        train_targets=train[1],
        clean_targets=train[1],
        test_inputs=test[0],
        test_targets=test[1],
        classes=100,
        mean=(129.30, 124.07, 112.43),
        std=(68.17, 65.39, 70.42),
        augmentation=Augmentation(padding=4),
    )


def _parts(task: str, folder: str, names: list[str], key: str, data: Path | None) -> list[tuple[Tensor, Tensor]]:
    contents = files.read(task, folder, names, data, SOURCE)
    return [_part(task, f"{folder}/{n}", key, content) for n, content in zip(names, contents, strict=True)]


def _part(task: str, name: str, key: str, content: bytes) -> tuple[Tensor, Tensor]:
    """Read images (N, 3, 32, 32) uint8 and labels (N,) int64 from one pickle."""
    values = files.unpickled(task, name, content)
    try:
        images = torch.from_numpy(values["data"]).reshape(-1, 3, 32, 32)
        labels = torch.tensor(values[key], dtype=torch.int64)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{task}: {name} must hold 'data' (N, 3072) and {key!r}, but {error!r}; get it again from {SOURCE}"
        ) from error
    return images, labels


@dataclass(frozen=True, kw_only=True)
class Cifar(Classification):
    """The common base class of the CIFAR tasks."""

    shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)
    models: ClassVar[tuple[str, ...]] = (
        "resnet20", "convnet", "mlp", "resnet56", "wrn-16-4", "vit-tiny", *(f"resnet20-w{w}" for w in WIDTHS),
    )  # fmt: skip

    def settings(self, model: str) -> dict[str, Any]:
        """30 epochs at learning rate 0.1; 0.2 for the smaller BatchNorm networks."""
        # In a trial of 60 steps with warm-up, ResNet-20 trained well at 0.1, recovered from a rise of the loss at 0.2,
        # and did not recover at 0.4.
        rate = 0.2 if model == "convnet" or model.startswith("resnet20") else 0.1
        return super().settings(model) | {"epochs": 30, "lr": rate}


@dataclass(frozen=True, kw_only=True)
class Cifar10(Cifar):
    """Photographs of 10 classes, 32 × 32 pixels: 50,000 for training and 10,000 for the test.

    Args:
        labels: The training labels: clean, or those that people gave (CIFAR-10N), of which 40 % (worst), 9 %
            (aggregate) or 17 to 18 % (random1, random2, random3) are wrong. The test labels are clean.
    """

    labels: Literal["clean", "worst", "aggregate", "random1", "random2", "random3"] = "clean"

    classes: ClassVar[int] = 10

    def __post_init__(self) -> None:
        checks.one_of("labels", self.labels, ("clean", *human_labels.KEYS))
        if self.labels != "clean" and self.noise:
            raise ArgumentError(
                f"labels must be clean where noise is added, but are {self.labels}; set noise=0, or labels=clean"
            )
        super().__post_init__()

    def images(self, root: Path | None) -> ImageSet:
        """See :func:`load_cifar10` and :func:`lowland.lab.data.human_labels.load`."""
        images = load_cifar10(root)
        if self.labels == "clean":
            return images
        return replace(images, train_targets=human_labels.load(root, self.labels, images.clean_targets))


@dataclass(frozen=True, kw_only=True)
class Cifar100(Cifar):
    """Photographs of 100 classes, 32 × 32 pixels: 50,000 for training and 10,000 for the test."""

    classes: ClassVar[int] = 100

    def images(self, root: Path | None) -> ImageSet:
        """See :func:`load_cifar100`."""
        return load_cifar100(root)


@dataclass(frozen=True, kw_only=True)
class VitLargeBatch(Cifar10):
    """CIFAR-10 with a small vision transformer and batches of 4,096, which LAMB trains.

    A batch runs as 32 micro-batches one after the other. For larger batches give ``--batch-size 8192 --accumulate 64``.
    """

    models: ClassVar[tuple[str, ...]] = ("vit-tiny", "resnet20")

    def recipe(self, model: str) -> Recipe:
        """LAMB at learning rate 0.01 for 60 epochs, a third of them warm-up, cosine schedule."""
        return Recipe(
            optimizer="lamb",
            lr=0.01,
            weight_decay=0.05,
            schedule="cosine",
            warmup=0.33,
            epochs=60,
            batch_size=4096,
            accumulate=32,
            clip=1.0,
            precision="fp32" if model == "vit-tiny" else "auto",
            channels_last=model == "resnet20",
        )
