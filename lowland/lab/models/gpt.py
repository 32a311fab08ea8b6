"""Small language models: transformers whose tokens attend to themselves and to previous tokens.

Reference: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowland.core.errors import UnknownNameError
from lowland.lab.models.transformer import Block, Size, initialize

GPTS = {
    "gpt-nano": Size(layers=3, heads=3, width=48),
    "gpt-mini": Size(layers=6, heads=6, width=192),
}


class GPT(nn.Module):
    """Embeddings of tokens and positions, causal blocks, and logits of the next token at every position.

    Args:
        size: The size of the blocks.
        vocab: The number of tokens.
        context: The largest number of tokens of an example.
        tied: Whether the last layer has the weights of the embedding of the tokens.
        dropout: The fraction of features that are set to 0 in training: after the embeddings and in each branch.
    """

    def __init__(self, size: Size, *, vocab: int, context: int, tied: bool, dropout: float) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab, size.width)
        self.position = nn.Embedding(context, size.width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(size, dropout, causal=True) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, vocab, bias=False)
        initialize(self, size.layers)
        if tied:
            self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, vocab) of tokens (B, T) int64."""
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def gpt(name: str, *, vocab: int, context: int, tied: bool, dropout: float) -> GPT:
    """Make the language model of this name, with weights from torch's global random numbers.

    Args:
        name: A key of ``GPTS``.
        vocab: See :class:`GPT`.
        context: See :class:`GPT`.
        tied: See :class:`GPT`.
        dropout: See :class:`GPT`.

    Raises:
        UnknownNameError: There is no language model of this name.
    """
    if name not in GPTS:
        raise UnknownNameError("model", name, GPTS)
    return GPT(GPTS[name], vocab=vocab, context=context, tied=tied, dropout=dropout)
