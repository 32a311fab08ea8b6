"""A text in windows of characters, for language models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowland.core.errors import DataError
from lowland.core.transfer import to_device

UNKNOWN = 0  # the symbol of characters that the training part does not have


def alphabet(text: str) -> tuple[str, ...]:
    """The characters of a text, sorted; the character at position i has the symbol i + 1."""
    return tuple(sorted(set(text)))


def symbols(text: str, characters: Sequence[str]) -> Tensor:
    """The symbols of a text, int64 of shape (characters of the text,); others than these have ``UNKNOWN``."""
    number = {character: place for place, character in enumerate(characters, UNKNOWN + 1)}
    return torch.tensor([number.get(character, UNKNOWN) for character in text], dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of ``size`` characters, side by side, as a :class:`lowland.lab.task.Dataset`.

    A window's targets are the characters that follow its inputs. Without a generator, window i begins at character
    i · size, so each character but the first is a target once; those after the last complete window are left out.
    With a generator, each window begins up to size − 1 characters later, and no later than at the last complete window
    of the text. So an epoch has as many windows, and over several epochs a character stands at every place of a window.

    Args:
        text: The symbols of the text, (N,) int64.
        size: The number of inputs of a window, >= 1.

    Raises:
        DataError: The text has no complete window.
    """

    text: Tensor
    size: int

    def __post_init__(self) -> None:
        if len(self) < 1:
            raise DataError(
                f"a part must have at least {self.size + 1} characters, a window and its last target, but has "
                f"{len(self.text)}; take a longer text or a smaller context"
            )

    def __len__(self) -> int:
        return (len(self.text) - 1) // self.size

    def to(self, device: torch.device, memory_format: torch.memory_format) -> Windows:
        """The same text on a device, so that batches need not be copied to it."""
        del memory_format  # symbols have no channels
        return replace(self, text=self.text.to(device))

    def batch(self, index: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """The windows at these positions: inputs (B, size), targets (B, size), positions (B,), all int64."""
        starts = index * self.size
        if generator is not None:
            starts = starts + torch.randint(self.size, index.shape, generator=generator)
            starts = starts.clamp(max=len(self.text) - 1 - self.size)
        places = to_device(starts[:, None] + torch.arange(self.size + 1), self.text.device)
        window = self.text[places]  # (B, size + 1)
        return window[:, :-1], window[:, 1:], to_device(index, self.text.device)
