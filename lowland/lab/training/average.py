"""An average of the weights over training, which is evaluated instead of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lowland.core import vec
from lowland.lab.training.wrapped import plain_state

PREFIX = "average/"  # the prefix of the names of its tensors in a checkpoint


class Average:
    """An exponential moving average of parameters and floating-point buffers.

    In the first steps the decay is smaller, ``(1 + t) / (10 + t)``, so that the influence of the initial weights
    vanishes quickly.

    Args:
        model: The trained model, wrapped or not.
        decay: The decay of the average, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        self._names = [n for n, t in plain_state(model).items() if t.is_floating_point()]
        self.mean = vec.clone(self._weights())

    def _weights(self) -> list[Tensor]:
        state = plain_state(self._model)
        return [state[name].detach() for name in self._names]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after a step; steps are counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        self.mean = vec.lerp(self.mean, self._weights(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the average as weights; restore its own weights bit for bit on exit."""
        saved = vec.clone(self._weights())
        try:
            self._write(self.mean)
            yield
        finally:
            self._write(saved)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for t, value in zip(self._weights(), values, strict=True):
            t.copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the average by name."""
        return {f"{PREFIX}{name}": t for name, t in zip(self._names, self.mean, strict=True)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the average from :meth:`tensors`."""
        self.mean = [tensors[f"{PREFIX}{name}"] for name in self._names]
