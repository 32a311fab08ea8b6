"""Small transformer encoders for the classification of texts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowland.core.errors import UnknownNameError
from lowland.lab.data.tokens import PAD, SEP
from lowland.lab.models.transformer import Block, Size, initialize

ENCODERS = {
    "encoder-tiny": Size(layers=2, heads=2, width=64),
    "encoder-small": Size(layers=4, heads=4, width=128),
}


class Encoder(nn.Module):
    """Embeddings, blocks whose tokens attend to all tokens but padding, and the mean over these tokens.

    Padding changes no result beyond rounding. The embeddings of a token are those of the token itself, of its position,
    and of the text that it belongs to, the first or the second of a pair.

    Args:
        size: The size of the blocks.
        vocab: The number of tokens.
        length: The largest number of tokens of an example.
        classes: The number of logits.
        dropout: The fraction of features that are set to 0 in training: after the embeddings and in each branch.
    """

    def __init__(self, size: Size, *, vocab: int, length: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab, size.width)
        self.position = nn.Embedding(length, size.width)
        self.segment = nn.Embedding(2, size.width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(size, dropout, causal=False) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, classes)
        initialize(self, size.layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, classes) of tokens (B, T) int64, as :func:`lowland.lab.data.tokens.encoded` marks them."""
        real = tokens != PAD  # (B, T)
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.token(tokens) + self.position(places) + self.segment(segments(tokens))
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, real[:, None, None, :])
        weights = real.to(x.dtype)[:, :, None]  # (B, T, 1)
        pooled = (self.norm(x) * weights).sum(1) / weights.sum(1)
        logits: Tensor = self.head(pooled)
        return logits


def segments(tokens: Tensor) -> Tensor:
    """0 for the tokens up to the first ``SEP`` of an example, and 1 for those after it; int64 (B, T)."""
    ends = (tokens == SEP).long()
    return (ends.cumsum(1) - ends).clamp(max=1)


def encoder(name: str, *, vocab: int, length: int, classes: int, dropout: float) -> Encoder:
    """Make the encoder of this name, with weights from torch's global random numbers.

    Args:
        name: A key of ``ENCODERS``.
        vocab: See :class:`Encoder`.
        length: See :class:`Encoder`.
        classes: See :class:`Encoder`.
        dropout: See :class:`Encoder`.

    Raises:
        UnknownNameError: There is no encoder of this name.
    """
    if name not in ENCODERS:
        raise UnknownNameError("model", name, ENCODERS)
    return Encoder(ENCODERS[name], vocab=vocab, length=length, classes=classes, dropout=dropout)
