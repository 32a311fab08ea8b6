"""A small vision transformer for small images, with LayerNorm before attention and before the perceptron.

Reference: Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021,
arXiv:2010.11929. The class is read off the mean of all patches, as in Beyer, Zhai, Kolesnikov, "Better plain ViT
baselines for ImageNet-1k", arXiv:2205.01580.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor, nn

from lowland.core.errors import ArgumentError

Shape = tuple[int, int, int]


class Block(nn.Module):
    """Self-attention and a perceptron, each after a LayerNorm and with a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, T, width) to tokens of the same shape."""
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.out(mixed)
        changed: Tensor = x + self.contract(F.gelu(self.expand(self.norm2(x))))
        return changed


class ViT(nn.Module):
    """Patches, learned positions, blocks, a LayerNorm, and a linear layer on the mean of the tokens."""

    def __init__(self, shape: Shape, classes: int, *, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        channels, height, breadth = shape
        if height % patch or breadth % patch:
            raise ArgumentError(
                f"shape must have sides that {patch} divides, the patch of the model, but is {shape}; take resnet20"
            )
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, height // patch * (breadth // patch), width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


def vit_tiny(shape: Shape, classes: int) -> ViT:
    """A ViT of 4 blocks, width 64 and 4 heads on patches of 4 × 4 pixels; 141,898 parameters on CIFAR-10."""
    return ViT(shape, classes, patch=4, width=64, depth=4, heads=4)
