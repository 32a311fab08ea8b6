"""A small vision transformer for small images, with LayerNorm before attention and before the perceptron.

Reference: Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021,
arXiv:2010.11929. The class is read off the mean of all patches, as in Beyer, Zhai, Kolesnikov, "Better plain ViT
baselines for ImageNet-1k", arXiv:2205.01580.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowland.core.errors import ArgumentError
from lowland.lab.models.transformer import STD, Block, Size, initialize

Shape = tuple[int, int, int]


class ViT(nn.Module):
    """Patches, learned positions, blocks, a LayerNorm, and a linear layer on the mean of the tokens."""

    def __init__(self, shape: Shape, classes: int, *, patch: int, size: Size) -> None:
        super().__init__()
        channels, height, breadth = shape
        if height % patch or breadth % patch:
            raise ArgumentError(
                f"shape must have sides that {patch} divides, the patch of the model, but is {shape}; take resnet20"
            )
        self.patches = nn.Conv2d(channels, size.width, patch, stride=patch)
        self.positions = nn.Parameter(STD * torch.randn(1, height // patch * (breadth // patch), size.width))
        self.blocks = nn.Sequential(*(Block(size, 0.0, causal=False) for _ in range(size.layers)))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, classes)
        initialize(self, size.layers)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


def vit_tiny(shape: Shape, classes: int) -> ViT:
    """A ViT of 3 blocks, width 64 and 4 heads on patches of 4 × 4 pixels; 157,962 parameters on CIFAR-10."""
    return ViT(shape, classes, patch=4, size=Size(layers=3, heads=4, width=64))
