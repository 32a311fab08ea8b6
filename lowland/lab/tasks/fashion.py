"""Fashion-MNIST: 60,000 training and 10,000 test images of clothing, grey, 28 × 28 pixels.

Reference: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", arXiv:1708.07747.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from lowland.core.errors import DataError
from lowland.lab.data import files
from lowland.lab.data.images import Augmentation, ImageSet
from lowland.lab.tasks.classification import Classification

SOURCE = "https://github.com/zalandoresearch/fashion-mnist"
NAMES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


def load(data: Path | None = None) -> ImageSet:
    """Read the images of ``fashion-mnist`` from ``FashionMNIST/raw/*-ubyte`` or ``*-ubyte.gz``.

    Args:
        data: The data folder; None is the environment variable ``LOWLAND_DATA``.

    Raises:
        DataError: A file is missing, unreadable, or differs from the upstream file.
    """
    contents = files.read("fashion-mnist", "FashionMNIST/raw", NAMES, data, SOURCE)
    train, train_labels, test, test_labels = (
        _idx(name, content) for name, content in zip(NAMES, contents, strict=True)
    )
    targets = train_labels.long()
    return ImageSet(
        name="fashion-mnist",
        train_inputs=train.unsqueeze(1),
        train_targets=targets,
        clean_targets=targets,
        test_inputs=test.unsqueeze(1),
        test_targets=test_labels.long(),
        classes=10,
        mean=(72.94,),
        std=(90.02,),
        augmentation=Augmentation(padding=2),
    )


def _idx(name: str, content: bytes) -> Tensor:
    """Parse an IDX file into a uint8 tensor: the bytes 0, 0, 8 (uint8) and rank; each size in 4 bytes; the data."""
    rank = int(name.split("idx")[1][0])
    start = 4 + 4 * rank
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if content[:4] != bytes([0, 0, 8, rank]) or len(content) != start + math.prod(sizes):
        raise DataError(
            f"fashion-mnist: {name} must be an IDX file of {rank}-dimensional uint8 data with as many bytes "
            f"as its header says, but is not; get it again from {SOURCE}"
        )
    # bytearray, because torch warns about memory that is not writable
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:].reshape(sizes)


@dataclass(frozen=True, kw_only=True)
class FashionMnist(Classification):
    """Grey images of clothing, 28 × 28 pixels: 60,000 for training and 10,000 for the test."""

    shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)
    classes: ClassVar[int] = 10
    models: ClassVar[tuple[str, ...]] = ("convnet", "mlp", "resnet20", "resnet56", "wrn-16-4")

    def images(self, root: Path | None) -> ImageSet:
        """See :func:`load`."""
        return load(root)
