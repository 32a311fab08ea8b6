"""BatchNorm statistics at the weights that are evaluated."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lowland.errors import ArgumentError


@torch.no_grad()
def refresh_stats(
    model: nn.Module, loader: Iterable[Any], forward: Callable[[nn.Module, Any], Any] | None = None
) -> None:
    """Recompute all running statistics at the current weights, as plain averages over the batches.

    Args:
        model: The model; called with every batch's inputs, in training mode, without gradients. Its modes
            are put back afterwards.
        loader: Batches: tensors of inputs, or tuples or lists whose first entry they are; any object with ``forward``.
        forward: ``(model, batch) -> anything``, which runs the model on a batch; None runs ``model(inputs)``.

    Warns:
        UserWarning: The model has no running statistics, so there is nothing to do and the loader is not read.

    Raises:
        ArgumentError: There is no batch; ``forward`` is None and a batch is neither tensor, tuple nor list; or
            ``forward`` cannot be called. Then, as after any exception, the statistics are as they were.
    """
    _check(model, loader, forward)
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    if not norms:
        warnings.warn(
            "refresh_stats found no layer with running statistics (BatchNorm or InstanceNorm with "
            "track_running_stats=True), so it changes nothing; leave the call out, or pass the model that has them",
            stacklevel=2,
        )
        return
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
            if forward is None:
                model(_inputs(batch))
            else:
                forward(model, batch)
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


def _check(model: Any, loader: Any, forward: Any) -> None:
    """Refuse arguments of the wrong kind."""
    if forward is not None and not callable(forward):
        raise ArgumentError(
            f"forward must be a function (model, batch), but is {forward!r}; write forward=lambda model, batch: …"
        )
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"model must be a torch.nn.Module, but is a {type(model).__name__}; pass the model itself, "
            "such as engine.model"
        )
    if isinstance(loader, Tensor) or not isinstance(loader, Iterable):
        raise ArgumentError(
            f"loader must give batches one after the other, but is a {type(loader).__name__}; pass a DataLoader, or a "
            "list: refresh_stats(model, [inputs])"
        )


def _inputs(batch: Any) -> Any:
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    plain = isinstance(inputs, Mapping | str | bytes | int | float | tuple | list | type(None))
    if isinstance(inputs, Tensor) or not (plain or type(inputs).__module__ == "numpy"):
        return inputs
    raise ArgumentError(
        f"loader must give tensors of inputs, or tuples that begin with one, but gave a {type(batch).__name__}; say "
        'how it runs: refresh_stats(model, loader, forward=lambda model, batch: model(batch["inputs"]))'
    )
