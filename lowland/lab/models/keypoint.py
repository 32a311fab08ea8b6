"""A small encoder-decoder that maps an image to one map of scores for each joint."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class HeatMaps(nn.Module):
    """Three halvings of the image, three doublings, and at each size a sum of what went down and what comes up.

    Three convolutions at the smallest size make a score depend on all pixels within 32 of its own, so that a
    hidden joint can be found from the others.

    Args:
        joints: The number of joints.
        width: The channels at full size; they double with each halving.
    """

    def __init__(self, joints: int, width: int = 16) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.stem = _convolution(1, width)
        self.down = nn.ModuleList(_convolution(a, b, stride=2) for a, b in pairwise(widths))
        self.bottom = nn.Sequential(*(_convolution(widths[-1], widths[-1]) for _ in range(3)))
        # A transposed convolution, because the backward pass of interpolation may not repeat its results on a GPU.
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairwise(widths))
        self.merge = nn.ModuleList(_convolution(a, a) for a in widths[:-1])
        self.head = nn.Conv2d(width, joints, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (B, joints, H, W) of images (B, 1, H, W), where H and W are multiples of 8."""
        sizes = [self.stem(x)]
        for down in self.down:
            sizes.append(down(sizes[-1]))
        out = self.bottom(sizes[-1])
        for level in reversed(range(len(self.up))):
            out = self.merge[level](self.up[level](out) + sizes[level])
        scores: Tensor = self.head(out)
        return scores
