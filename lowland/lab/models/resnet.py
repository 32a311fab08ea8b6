"""Residual networks for small images, with BatchNorm after each convolution.

Reference: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385,
section 4.2.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor, nn

Shape = tuple[int, int, int]


class Block(nn.Module):
    """Two 3 × 3 convolutions and a shortcut without parameters (option A: subsample, add zero channels)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.added_channels = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1 or self.added_channels:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added_channels))
        return F.relu(out + x)


class ResNet(nn.Module):
    """``6 n + 2`` layers: a convolution, 3 stages of n blocks with w, 2 w, 4 w channels, a linear layer."""

    def __init__(self, shape: Shape, classes: int, blocks: int, width: int = 16) -> None:
        super().__init__()
        stem = nn.Conv2d(shape[0], width, 3, padding=1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(width), nn.ReLU())
        self.stages = nn.Sequential(*_stages(blocks, width))
        self.head = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W) of at least 8 × 8 pixels."""
        logits: Tensor = self.head(self.stages(self.stem(x)).mean((2, 3)))
        return logits


def _stages(blocks: int, width: int) -> list[Block]:
    stages, inputs = [], width
    for outputs in (width, 2 * width, 4 * width):
        for number in range(blocks):
            stages.append(Block(inputs, outputs, stride=2 if outputs > width and number == 0 else 1))
            inputs = outputs
    return stages


def resnet20(shape: Shape, classes: int, width: int = 16) -> ResNet:
    """ResNet-20 with option-A shortcuts; 269,722 parameters on CIFAR-10 (the paper's 0.27 million).

    Args:
        shape: The shape of one image: (channels, height, width).
        classes: The number of logits.
        width: The channels of the first stage, 16 in the paper; the number of parameters grows with its square.
    """
    return ResNet(shape, classes, blocks=3, width=width)


def resnet56(shape: Shape, classes: int) -> ResNet:
    """ResNet-56 with option-A shortcuts; 853,018 parameters on CIFAR-10 (the paper's 0.85 million)."""
    return ResNet(shape, classes, blocks=9)
