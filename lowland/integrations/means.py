"""Checks that the loss of a batch that is cut is the mean over its examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lowland.core.errors import LossError
from lowland.core.probe import Probe
from lowland.engine import Engine
from lowland.executors import Pass
from lowland.integrations.temporary import evaluating


def check_examples(engine: Engine, step: Callable[[Any], Any], batch: Any) -> None:
    """Compare a batch's loss with the mean over its two halves, in a separate pass that restores all state.

    Args:
        engine: The engine, whose model is evaluated, without dropout.
        step: Returns the loss of a batch, or a dict with the loss under the key "loss".
        batch: A batch that the engine can cut.

    Raises:
        LossError: The two differ, so the weight of a part is not its number of examples.
    """
    halves = engine.batches.chunk(batch, 2)
    sizes = [engine.batches.size(half) for half in halves]
    devices = [d for d in {p.device for p in engine.params} if d.type == "cuda"]
    probe = Probe(batch, grad=False, stats=False)
    with evaluating(engine.model), torch.random.fork_rng(devices), Pass(engine.work, probe) as p:
        full, *parts = (_loss(step(part)) for part in (batch, *halves))
        p.backward(full)
    low = full.dtype.itemsize < 4 or torch.is_autocast_enabled(full.device.type)
    mean = mean_unless_equal(full, parts, sizes, low_precision=low)
    if mean is not None:
        raise LossError(
            "a batch that is cut must have a loss that is the mean over its examples, but on one batch it is "
            f"{float(full):.6g}, and over the batch's two halves {float(mean):.6g}; use a method that does not "
            "cut, without micro_batch, or train with Engine.backward(batch) and lowland.Loss(total, count)"
        )


def mean_unless_equal(
    full: Tensor, parts: Sequence[Tensor], sizes: Sequence[int], low_precision: bool
) -> Tensor | None:
    """Compare the loss of a batch with the mean over its parts.

    Args:
        full: The loss of the batch.
        parts: The losses of its parts.
        sizes: The numbers of examples of the parts.
        low_precision: Whether losses come from a forward pass in fp16 or bf16.

    Returns:
        None if they are equal, or if the batch's loss is not finite, which decides nothing; else the mean over parts.
    """
    mean = torch.stack([loss.double() * n / sum(sizes) for n, loss in zip(sizes, parts, strict=True)]).sum()
    # In low precision, two sums of equal numbers may differ by 1e-2; means over other items usually differ by more.
    tolerance = 2e-2 if low_precision else 1e-3
    if not full.isfinite() or torch.isclose(full.double(), mean, rtol=tolerance, atol=1e-6):
        return None
    return mean


def _loss(result: Any) -> Tensor:
    loss: Tensor = result["loss"] if isinstance(result, Mapping) else result
    return loss.detach().mean()
