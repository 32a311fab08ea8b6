"""Parameter groups of transformers."""

from __future__ import annotations

from typing import Any

from torch import nn


def without_decay_of_vectors(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups: matrices, with the recipe's weight decay; and biases and norms, which have one dimension, without.

    Frozen parameters are in no group, and an empty group is left out.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trainable if p.ndim > 1], [p for p in trainable if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
