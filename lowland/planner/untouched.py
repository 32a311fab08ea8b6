"""Leaves the state that a loss function keeps, and all random numbers, as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lowland.core.loss import LossFn
from lowland.core.probe import Probe
from lowland.executors.buffers import Buffers
from lowland.executors.modes import SharedRNG


@contextmanager
def untouched(model: nn.Module, loss_fn: LossFn, batch: Any, device: torch.device) -> Iterator[None]:
    """Restore at the end what passes have written, as the engine does after a pass that does not report.

    Copies of the model have buffers of their own, but the modules and objects that the loss function uses are the
    user's, such as centers, a teacher and its statistics, and generators.

    Args:
        model: The model.
        loss_fn: The loss function.
        batch: A batch of one step.
        device: The model's device.
    """
    buffers, random = Buffers(model, loss_fn), SharedRNG(device)
    buffers.begin()
    random.begin(buffers.generators)
    random.rewind()  # saves the states
    try:
        with buffers.passing(Probe(batch, stats=False)):
            yield
    finally:
        random.rewind()
