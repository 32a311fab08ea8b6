"""A problem whose loss function has two parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from lowland import Criterion
from reference.model import MLP


@dataclass
class InParts(MLP):
    """The same network and the same loss as the other one."""

    @property
    def loss_fn(self) -> Any:  # type: ignore[override]
        return Criterion(
            lambda model, batch: model(batch[0]),
            lambda logits, batch: nn.functional.cross_entropy(logits, batch[1], reduction="none"),
        )
