"""Random crops and flips of whole batches of images at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor

from lowland.core import checks


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
        checks.whole("padding", self.padding, 0, "padding=0 crops nothing")

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
