"""The base optimizer alone."""

from __future__ import annotations

from reference.model import Batch
from reference.twin import Twin
from reference.vectors import Weights


class Plain(Twin):
    """`d = g(w; B)`."""

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        return self.loss(batch), self.gradient(batch)
