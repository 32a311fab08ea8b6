"""What all twins share: a problem, weights, a base optimizer and `step`."""

from __future__ import annotations

from typing import Any

from reference.base import Base
from reference.geometry import Geometry, Rho, l2
from reference.model import Batch
from reference.vectors import Weights, add, copy


class Twin:
    """One method at work on one problem; a subclass writes `direction`, what the base optimizer is handed."""

    def __init__(
        self, problem: Any, w: Weights, base: Base, *, rho: Rho = 0.05, geometry: Geometry = l2, **fields: Any
    ):
        self.problem, self.w, self.base = problem, copy(w), base
        self.rho, self.geometry = rho, geometry
        self.lr = 0.0
        self.setup(**fields)

    def setup(self) -> None:
        """Stores the method's own hyperparameters and starts its memory."""

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        raise NotImplementedError

    def step(self, batch: Batch, lr: float) -> float:
        """One step of the method and its base optimizer; returns the loss."""
        self.lr = lr
        loss, d = self.direction(batch)
        self.w = self.base.step(self.w, d, lr)
        return loss

    def gradient(self, batch: Batch, at: Weights | None = None) -> Weights:
        """The gradient of the mean loss at `w + at`."""
        return self.problem.gradient(self.w if at is None else add(self.w, at), batch)

    def loss(self, batch: Batch, at: Weights | None = None) -> float:
        return self.problem.loss(self.w if at is None else add(self.w, at), batch)

    def ascent(self, g: Weights) -> Weights:
        return self.geometry(self.w, g, self.rho)
