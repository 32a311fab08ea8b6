"""BatchNorm statistics at the weights that are evaluated."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lowland.errors import ArgumentError


@torch.no_grad()
def refresh_stats(model: nn.Module, loader: Iterable[Any]) -> None:
    """Recompute all running statistics at the current weights, as plain averages over the batches.

    Args:
        model: The model; called with every batch's inputs, in training mode, without gradients. Its modes
            are put back afterwards.
        loader: Batches: tensors of inputs, or tuples or lists whose first entry they are.

    Raises:
        ArgumentError: There is no batch. Then, as after any exception, the statistics are as they were.
    """
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    modes = {m: m.training for m in model.modules()}
    rates = [m.momentum for m in norms]
    saved = [[b.clone() for b in m.buffers(recurse=False)] for m in norms]
    seen = False
    try:
        for m in norms:
            m.reset_running_stats()
            m.momentum = None  # the plain average over all batches, in place of a moving one
        model.train()
        for batch in loader:
            model(batch[0] if isinstance(batch, tuple | list) else batch)
            seen = True
        if not seen:
            raise ArgumentError("loader must give at least one batch, but gave none; pass batches of training inputs")
    except BaseException:
        for m, buffers in zip(norms, saved, strict=True):
            for buffer, before in zip(m.buffers(recurse=False), buffers, strict=True):
                buffer.copy_(before)
        raise
    finally:
        for m, rate in zip(norms, rates, strict=True):
            m.momentum = rate
        for module, training in modes.items():
            module.training = training
