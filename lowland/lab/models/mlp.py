"""Two small networks that train in seconds: a perceptron and a convolutional network."""

from __future__ import annotations

import math

from torch import nn

Shape = tuple[int, int, int]


def mlp(shape: Shape, classes: int, width: int = 256) -> nn.Sequential:
    """A perceptron with two hidden layers of ``width`` ReLUs and no normalization."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )


def convnet(shape: Shape, classes: int) -> nn.Sequential:
    """Three 3 × 3 convolutions (32, 64, 128 channels), each followed by BatchNorm, ReLU and 2 × 2 max pooling.

    94,762 parameters on CIFAR-10; for images of at least 8 × 8 pixels.
    """
    blocks: list[nn.Module] = []
    for inputs, outputs in ((shape[0], 32), (32, 64), (64, 128)):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        blocks += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes))
