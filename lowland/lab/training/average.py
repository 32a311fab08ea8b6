"""An average of the weights over training, which is evaluated in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lowland.core import vec
from lowland.lab.training.wrapped import plain_state

PREFIX = "average/"  # what the names of its tensors begin with in a checkpoint


class Average:
    """An exponential moving average of parameters and floating-point buffers.

    In the first steps the decay is smaller, ``(1 + t) / (10 + t)``, so that the initial weights are soon forgotten.

    Args:
        model: As it is trained, wrapped or not.
        decay: In (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        self._names = [n for n, t in plain_state(model).items() if t.is_floating_point()]
        self.mean = vec.clone(self._now())

    def _now(self) -> list[Tensor]:
        state = plain_state(self._model)
        return [state[name].detach() for name in self._names]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        self.mean = vec.lerp(self.mean, self._now(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model at the average; its own weights come back bit for bit."""
        saved = vec.clone(self._now())
        try:
            self._write(self.mean)
            yield
        finally:
            self._write(saved)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for t, value in zip(self._now(), values, strict=True):
            t.copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """The average by name."""
        return {f"{PREFIX}{name}": t for name, t in zip(self._names, self.mean, strict=True)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on where :meth:`tensors` were taken."""
        self.mean = [tensors[f"{PREFIX}{name}"] for name in self._names]
