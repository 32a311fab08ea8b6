"""Labelled images in memory, and an augmentation that crops and flips a batch at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor

from lowland.core import checks
from lowland.core.errors import ArgumentError, DataError
from lowland.core.transfer import to_device
from lowland.lab.data.streams import stream


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The standard training augmentation of small images: a random crop of the padded image, then a random flip.

    Each image of a batch is cropped and flipped independently.

    Args:
        padding: Pixels of value 0 that are added on every side before a crop of the original size, >= 0.
        flip: Whether each image is mirrored left to right with probability 1/2.
    """

    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        checks.integer("padding", self.padding, 0, "padding=0 crops nothing")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """An augmented copy of ``images`` (B, C, H, W), with the same shape, dtype and device."""
        count, size = len(images), 2 * self.padding + 1
        # Drawn on the CPU, so that crops are the same with a GPU. All three are always drawn, so that the crops do not
        # depend on ``flip``, and the flips do not depend on ``padding``.
        down, right = torch.randint(size, (2, count), generator=generator)  # (B,), (B,)
        coin = torch.rand(count, generator=generator) < 0.5
        if self.padding:
            images = _crop(images, self.padding, to_device(down, images.device), to_device(right, images.device))
        if self.flip:
            images = torch.where(to_device(coin, images.device)[:, None, None, None], images.flip(-1), images)
        return images


@lru_cache(maxsize=32)
def _per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """One number for each channel, (1, C, 1, 1). It stays on the device, to which a copy takes time in every batch."""
    return to_device(torch.tensor(values, dtype=dtype), device).view(1, -1, 1, 1)


def _crop(images: Tensor, padding: int, down: Tensor, right: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding,) * 4)
    # A view of all crops of all images, (B, C, 2p+1, 2p+1, H, W); the index copies one crop per image.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, down, right]


@dataclass(frozen=True, eq=False)
class Images:
    """One part of the data, labelled images, as a :class:`lowland.lab.task.Dataset`.

    Args:
        inputs: The images, (N, C, H, W), uint8 pixels or floats.
        targets: The labels, (N,) int64.
        mean: The mean of each channel, in the unit of the stored inputs.
        std: The standard deviation of each channel, in the same unit.
        augmentation: The augmentation of batches that get a generator; None without augmentation.
        memory_format: The memory format of the batches.
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
        """The same images on a device, so that batches need not be copied to it."""
        moved = replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))
        return replace(moved, memory_format=memory_format)

    def batch(self, index: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """The batch at these positions: inputs (B, C, H, W) float32, targets (B,) int64, and the positions (B,)."""
        index = to_device(index, self.targets.device)
        inputs = self.inputs[index]
        if generator is not None and self.augmentation is not None:
            inputs = self.augmentation(inputs, generator)
        return self.normalize(inputs), self.targets[index], index

    def normalize(self, inputs: Tensor) -> Tensor:
        """Normalize a batch (B, C, H, W) of stored inputs: (x − mean) / std per channel, float32."""
        # Always a copy, because the arithmetic is in place and must not change the stored images.
        # The memory format changes last: on a CPU this takes half the time of converting both at once.
        floats = inputs.to(torch.float32, copy=True)
        mean, std = (_per_channel(tuple(v), torch.get_default_dtype(), inputs.device) for v in (self.mean, self.std))
        return floats.sub_(mean).div_(std).contiguous(memory_format=self.memory_format)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Labelled images in memory: a training part and a test part.

    Args:
        name: The name of the task, for error messages.
        train_inputs: The training images, (N, C, H, W), uint8 pixels or floats.
        train_targets: The training labels, (N,) int64, with label noise if there is any.
        clean_targets: The training labels before label noise, (N,) int64; without noise, the same tensor.
        test_inputs: The test images, (M, C, H, W).
        test_targets: The test labels, (M,) int64, without noise.
        classes: The number of classes.
        mean: The mean of each channel, in the unit of the stored inputs (0 to 255 for uint8 photographs).
        std: The standard deviation of each channel, in the same unit.
        augmentation: The augmentation of training batches; None without augmentation.
        confusions: For each class the class that replaces it in asymmetric noise; None is the next class.
        noise: The fraction of labels that are replaced, among the classes that the kind of noise applies to.
        noise_kind: "symmetric" or "asymmetric".
        noise_seed: The seed of the label noise.

    Raises:
        DataError: A part is empty, has unequal numbers of images and labels, or has a label out of range.
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
        """The shape of one image: (channels, height, width)."""
        channels, height, width = self.train_inputs.shape[1:]
        return int(channels), int(height), int(width)

    def parts(self) -> dict[str, Images]:
        """The parts "train" and "test"; training batches that get a generator are augmented."""
        return {
            "train": Images(self.train_inputs, self.train_targets, self.mean, self.std, self.augmentation),
            "test": Images(self.test_inputs, self.test_targets, self.mean, self.std),
        }


def subset(images: ImageSet, count: int) -> ImageSet:
    """The images with ``count`` training images, as many of each class as there are; the test part is unchanged.

    The choice depends on nothing else, and a smaller number chooses a part of the images of a larger one. Classes are
    those before label noise, and the images keep their order.

    Args:
        images: The images.
        count: The number of training images.

    Raises:
        ArgumentError: There are fewer images.
    """
    total = len(images.clean_targets)
    if count > total:
        raise ArgumentError(
            f"examples must be <= {total}, the training images of {images.name}, but is {count}; None takes all"
        )
    order = torch.randperm(total, generator=stream(0, "examples"))
    classes = images.clean_targets[order]
    members = F.one_hot(classes, images.classes).cumsum(0)
    turn = members[torch.arange(total), classes]  # 1 for the first image of its class, 2 for the second
    kept = order[turn.argsort(stable=True)[:count]].sort().values
    return replace(
        images,
        train_inputs=images.train_inputs[kept],
        train_targets=images.train_targets[kept],
        clean_targets=images.clean_targets[kept],
    )
