"""The blocks of small transformers, with LayerNorm before attention and before the perceptron.

Reference: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762; Xiong et al., "On Layer
Normalization in the Transformer Architecture", ICML 2020, arXiv:2002.04745.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor, nn

STD = 0.02  # of the initial weights


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of a transformer.

    Args:
        layers: The number of blocks.
        heads: The number of attention heads, which divides ``width``.
        width: The number of features of a token.
    """

    layers: int
    heads: int
    width: int


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + perceptron(norm(x))``, whose hidden layer has four times the width."""

    def __init__(self, size: Size, dropout: float, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = size.heads, causal
        self.norm1 = nn.LayerNorm(size.width)
        self.qkv = nn.Linear(size.width, 3 * size.width)
        self.out = nn.Linear(size.width, size.width)
        self.norm2 = nn.LayerNorm(size.width)
        self.up = nn.Linear(size.width, 4 * size.width)
        self.down = nn.Linear(4 * size.width, size.width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map (B, T, width) to (B, T, width).

        Args:
            x: The features of the tokens.
            mask: The tokens that may be attended to, bool (B, 1, 1, T); None for all, or for all previous ones.
        """
        x = x + self.dropout(self.out(self._attended(self.norm1(x), mask)))
        out: Tensor = x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))
        return out

    def _attended(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, count, width = x.shape
        heads = self.qkv(x).view(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind()  # each (B, heads, T, width / heads)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        return mixed.transpose(1, 2).reshape(batch, count, width)


def initialize(model: nn.Module, layers: int) -> None:
    """Draw all weights from a normal distribution of standard deviation 0.02, and set biases to 0.

    The last layers of the branches get 0.02 / √(2 · layers), because so many branches are summed (Radford et al.,
    "Language Models are Unsupervised Multitask Learners", 2019, section 2.3).
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, Block):
            for last in (module.out, module.down):
                nn.init.normal_(last.weight, std=STD / math.sqrt(2 * layers))
