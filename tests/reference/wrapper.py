"""What the twins that run other twins share."""

from __future__ import annotations

from typing import Any

from reference.model import Batch
from reference.twin import Twin
from reference.vectors import Weights

Inner = tuple[type[Twin], dict[str, Any]]


class Wrapper(Twin):
    """Runs other twins, each with memory of its own, at its own weights, base optimizer and learning rate."""

    def start(self, inner: Inner) -> Twin:
        kind, fields = inner
        return kind(self.problem, self.w, self.base, **fields)

    def ask(self, twin: Twin, batch: Batch) -> tuple[float, Weights]:
        twin.w, twin.base, twin.lr = self.w, self.base, self.lr
        return twin.direction(batch)
