"""What a classification task is: images and labels in memory, and how a batch of them is prepared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lowland.core.errors import DataError
from lowland.lab.data.images import Augmentation


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A classification task with its training and test examples in memory.

    Args:
        name: Key in ``TASKS``.
        train_inputs: (N, C, H, W), uint8 pixels or floats.
        train_targets: (N,) int64, what a method is trained on (noisy, where label noise was asked for).
        clean_targets: (N,) int64, the labels before label noise; the same tensor where there is none.
        test_inputs: (M, C, H, W).
        test_targets: (M,) int64, never noisy.
        classes: Number of classes.
        mean: Per channel, in the unit of the stored inputs (0 to 255 for uint8 photographs).
        std: Per channel, in the same unit.
        augmentation: What training batches go through; None leaves them alone.
        confusions: Class to the class that asymmetric noise mistakes it for; None is the next class.
        noise: Share of labels replaced, among the classes the kind of noise touches.
        noise_kind: "symmetric" or "asymmetric".
        noise_seed: What the replaced labels were drawn from.
    """

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    clean_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation | None = None
    confusions: Mapping[int, int] | None = None
    noise: float = 0.0
    noise_kind: str = "symmetric"
    noise_seed: int = 0

    def __post_init__(self) -> None:
        pairs = (
            ("train", self.train_inputs, self.train_targets),
            ("train", self.train_inputs, self.clean_targets),
            ("test", self.test_inputs, self.test_targets),
        )
        for part, inputs, targets in pairs:
            if len(inputs) == 0 or len(inputs) != len(targets):
                raise DataError(
                    f"{self.name}: the {part} part needs as many images as labels, at least one, "
                    f"but has {len(inputs)} and {len(targets)}; get the files again"
                )
            low, high = int(targets.min()), int(targets.max())
            if low < 0 or high >= self.classes:
                raise DataError(
                    f"{self.name}: {part} labels must be in 0..{self.classes - 1}, but are in {low}..{high}; "
                    "get the files again"
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.train_inputs.shape[1:]
        return int(channels), int(height), int(width)

    def normalize(self, inputs: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        """A batch (B, C, H, W) of stored inputs as float32, (x − mean) / std per channel."""
        # A fresh tensor even for float inputs: the in-place arithmetic must not reach the stored images.
        # The layout changes last: on a CPU that takes half the time of converting into the other layout at once.
        floats = inputs.to(torch.float32, copy=True)
        mean = torch.tensor(self.mean, device=inputs.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=inputs.device).view(1, -1, 1, 1)
        return floats.sub_(mean).div_(std).contiguous(memory_format=memory_format)
