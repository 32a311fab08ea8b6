"""Wide residual networks, with BatchNorm and ReLU before each convolution.

Reference: Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016, arXiv:1605.07146.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor, nn

Shape = tuple[int, int, int]


class Block(nn.Module):
    """Twice BatchNorm, ReLU and a 3 × 3 convolution; the shortcut is a 1 × 1 convolution if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same_shape = inputs == outputs and stride == 1
        self.shortcut = None if same_shape else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        # As in the paper's code, the convolution of the shortcut gets the activated input.
        shortcut: Tensor = x if self.shortcut is None else self.shortcut(active)
        return shortcut + out


class WideResNet(nn.Module):
    """WRN-d-k: 3 stages of n = (d − 4) / 6 blocks with 16 k, 32 k, 64 k channels."""

    def __init__(self, shape: Shape, classes: int, depth: int, factor: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, padding=1, bias=False)]
        inputs = 16
        for width in (16 * factor, 32 * factor, 64 * factor):
            for number in range((depth - 4) // 6):
                blocks.append(Block(inputs, width, stride=2 if number == 0 and width > 16 * factor else 1))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W) of at least 8 × 8 pixels."""
        logits: Tensor = self.head(F.relu(self.bn(self.blocks(x))).mean((2, 3)))
        return logits


def wrn_16_4(shape: Shape, classes: int) -> WideResNet:
    """WRN-16-4; 2.75 million parameters on CIFAR-10."""
    return WideResNet(shape, classes, depth=16, factor=4)
