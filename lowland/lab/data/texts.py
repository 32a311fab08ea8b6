"""Labelled texts in memory, as tokens; a batch is padded to its longest example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowland.core.transfer import to_device
from lowland.lab.data.tokens import PAD


@dataclass(frozen=True, eq=False)
class Texts:
    """Labelled texts, one part of the data, as a :class:`lowland.lab.task.Dataset`. There is no augmentation.

    Args:
        tokens: The tokens of all examples one after the other, int64.
        starts: The position of each example's first token, (N,) int64.
        lengths: The number of each example's tokens, (N,) int64, on the CPU, where a batch's width is computed.
        targets: The labels, (N,) int64.
    """

    tokens: Tensor
    starts: Tensor
    lengths: Tensor
    targets: Tensor

    @classmethod
    def of(cls, examples: Sequence[Sequence[int]], labels: Sequence[int]) -> Texts:
        """Texts from the tokens and the label of each example."""
        lengths = torch.tensor([len(example) for example in examples])
        tokens = torch.tensor([token for example in examples for token in example])
        return cls(tokens, lengths.cumsum(0) - lengths, lengths, torch.tensor(labels))

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device, memory_format: torch.memory_format) -> Texts:
        """The same texts on a device, so that batches need not be copied to it."""
        del memory_format  # tokens have no channels
        return replace(
            self, tokens=self.tokens.to(device), starts=self.starts.to(device), targets=self.targets.to(device)
        )

    def batch(self, index: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """The batch at these positions: tokens (B, T) int64 with ``PAD`` behind, targets (B,), positions (B,)."""
        lengths = self.lengths[index]
        place = torch.arange(int(lengths.max()))  # (T,)
        # Padding takes any token that there is, and is then replaced.
        at = torch.where(place < lengths[:, None], place, 0)  # (B, T)
        index, at, padding = (to_device(t, self.tokens.device) for t in (index, at, place >= lengths[:, None]))
        tokens = self.tokens[self.starts[index][:, None] + at].masked_fill(padding, PAD)
        return tokens, self.targets[index], index
