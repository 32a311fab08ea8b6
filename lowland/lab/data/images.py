"""Labelled images in memory, and random crops and flips of whole batches at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor

from lowland.core import checks
from lowland.core.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The standard training augmentation of small images: a crop out of the padded image, then a flip.

    Every image of a batch gets its own offsets and its own coin, drawn from the generator it is given.

    Args:
        padding: Black pixels added on every side before a crop of the original size, >= 0.
        flip: Whether each image is mirrored left to right with probability 1/2.
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        checks.integer("padding", self.padding, 0, "padding=0 crops nothing")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The augmented copy of ``images`` (B, C, H, W), of the same size, type and device."""
        count, size = len(images), 2 * self.padding + 1
        # Drawn on the CPU, so that a GPU sees the same crops. Always all three, so that switching one part of
        # the augmentation off leaves the other part's draws as they were.
        down, right = torch.randint(size, (2, count), generator=generator)  # (B,), (B,)
        coin = torch.rand(count, generator=generator) < 0.5
        if self.padding:
            images = _crop(images, self.padding, down.to(images.device), right.to(images.device))
        if self.flip:
            images = torch.where(coin.to(images.device)[:, None, None, None], images.flip(-1), images)
        return images


def _crop(images: Tensor, padding: int, down: Tensor, right: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding,) * 4)
    # All crops of all images as a view, (B, C, 2p+1, 2p+1, H, W); the index then copies one block per image.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, down, right]


@dataclass(frozen=True, eq=False)
class Images:
    """One part of labelled images, as a :class:`lowland.lab.task.Dataset`.

    Args:
        inputs: (N, C, H, W), uint8 pixels or floats.
        targets: (N,) int64.
        mean: Per channel, in the unit of the stored inputs.
        std: Per channel, in the same unit.
        augmentation: What a batch goes through where it gets a generator.
        memory_format: How batches are laid out.
    """

    inputs: Tensor
    targets: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation | None = None
    memory_format: torch.memory_format = torch.contiguous_format

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device, memory_format: torch.memory_format) -> Images:
        """The same images on a device, so that batches need not be moved."""
        moved = replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))
        return replace(moved, memory_format=memory_format)

    def batch(self, index: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (B, C, H, W) float32, targets (B,) int64, and the index (B,) itself."""
        index = index.to(self.targets.device)
        inputs = self.inputs[index]
        if generator is not None and self.augmentation is not None:
            inputs = self.augmentation(inputs, generator)
        return self.normalize(inputs), self.targets[index], index

    def normalize(self, inputs: Tensor) -> Tensor:
        """A batch (B, C, H, W) of stored inputs as float32, (x − mean) / std per channel."""
        # A fresh tensor even for float inputs: the in-place arithmetic must not reach the stored images.
        # The layout changes last: on a CPU that takes half the time of converting into the other layout at once.
        floats = inputs.to(torch.float32, copy=True)
        mean = torch.tensor(self.mean, device=inputs.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=inputs.device).view(1, -1, 1, 1)
        return floats.sub_(mean).div_(std).contiguous(memory_format=self.memory_format)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Labelled images in memory: a training and a test part.

    Args:
        name: Of the task, for errors.
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

    def parts(self) -> dict[str, Images]:
        """The parts "train" and "test"; the training part is augmented where a generator is given."""
        return {
            "train": Images(self.train_inputs, self.train_targets, self.mean, self.std, self.augmentation),
            "test": Images(self.test_inputs, self.test_targets, self.mean, self.std),
        }
