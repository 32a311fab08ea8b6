"""The loss a run is trained on, and how well a model does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows it by

from lowland.core.loss import LossFn


class Score(NamedTuple):
    """How a model does on a set of examples: mean cross-entropy, and the fraction it gets right."""

    loss: float
    accuracy: float


def cross_entropy(*, precision: str = "fp32", label_smoothing: float = 0.0) -> LossFn:
    """The training loss of classification, one per example, for batches ``(inputs, targets, ...)``.

    Args:
        precision: ``bf16`` runs the forward pass under autocast; the loss itself is always fp32.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
    """

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = batch[0], batch[1]
        outputs = forward(model, inputs, precision)
        return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=label_smoothing)

    return loss_fn


def forward(model: nn.Module, inputs: Tensor, precision: str) -> Tensor:
    """The logits, in fp32."""
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        outputs: Tensor = model(inputs)
    return outputs.float()


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Any], *, precision: str = "fp32") -> Score:
    """Loss and accuracy in evaluation mode, without label smoothing; the model's mode comes back."""
    training = model.training
    model.eval()
    losses: list[Tensor] = []
    hits: list[Tensor] = []
    count = 0
    try:
        for inputs, targets, *_ in batches:
            outputs = forward(model, inputs, precision)
            losses.append(F.cross_entropy(outputs, targets, reduction="sum").double())
            hits.append((outputs.argmax(1) == targets).sum())
            count += len(targets)
    finally:
        model.train(training)
    return Score(float(torch.stack(losses).sum()) / count, int(torch.stack(hits).sum()) / count)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes and bits of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
