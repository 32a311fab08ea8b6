"""scikit-learn's handwritten digits: 1,797 grey images of 8 × 8 pixels, without a download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from lowland.core.errors import MissingExtraError
from lowland.lab.data.images import ImageSet
from lowland.lab.tasks.classification import Classification

TEST = 500


def load(data: Path | None = None) -> ImageSet:
    """Load 1,297 training and 500 test images, in a fixed split with equal class proportions.

    Args:
        data: Ignored; the images are part of scikit-learn.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    del data
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise MissingExtraError("scikit-learn", "lab") from None
    digits = load_digits()
    images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)  # (1797, 1, 8, 8), values 0 to 16
    labels = torch.from_numpy(digits.target).to(torch.int64)
    train, test = train_test_split(range(len(labels)), test_size=TEST, stratify=digits.target, random_state=0)
    return ImageSet(
        name="digits",
        train_inputs=images[train],
        train_targets=labels[train],
        clean_targets=labels[train],
        test_inputs=images[test],
        test_targets=labels[test],
        classes=10,
        mean=(4.88,),
        std=(6.02,),
    )


@dataclass(frozen=True, kw_only=True)
class Digits(Classification):
    """Handwritten digits, 8 × 8 pixels: 1,297 for training and 500 for the test; they need no download."""

    shape: ClassVar[tuple[int, int, int]] = (1, 8, 8)
    classes: ClassVar[int] = 10
    models: ClassVar[tuple[str, ...]] = ("mlp", "convnet", "resnet20", "resnet56", "wrn-16-4")

    def images(self, root: Path | None) -> ImageSet:
        """See :func:`load`."""
        return load(root)

    def settings(self, model: str) -> dict[str, Any]:
        """40 epochs of batches of 64; channels_last and bf16 are not faster on images of 8 × 8 pixels."""
        return {"epochs": 40, "batch_size": 64}
