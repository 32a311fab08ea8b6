"""composer's Trainer with its SAM algorithm, from its documentation: as much of it as a plain training needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows it by

from migrated.rules import ascent, gradients, moved, reached


class ComposerClassifier(nn.Module):
    """A network with cross entropy."""

    def __init__(self, module: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.module, self.num_classes = module, num_classes

    def loss(self, batch: Any) -> Tensor:
        inputs, targets = batch
        return F.cross_entropy(self.module(inputs), targets)


@dataclass
class SAM:
    """SAM in steps ``interval``, ``2 * interval``, ..., counted from 1; the base optimizer alone in the others."""

    rho: float = 0.05
    epsilon: float = 1e-12
    interval: int = 1

    def step(self, number: int, optimizer: torch.optim.Optimizer, closure: Callable[[], None]) -> None:
        closure()
        if number % self.interval == 0:
            weights = [p for p, _ in reached(optimizer)]
            with moved(weights, ascent(weights, gradients(weights), [self.rho] * len(weights))):
                closure()
        optimizer.step()


class Trainer:
    """One epoch: a closure zeroes the gradients and adds those of the micro-batches, each weighted by its share."""

    def __init__(
        self,
        *,
        model: ComposerClassifier,
        train_dataloader: Any,
        optimizers: torch.optim.Optimizer,
        algorithms: list[SAM],
        max_duration: str,
        device_train_microbatch_size: int | None = None,
    ) -> None:
        assert max_duration == "1ep"
        self.model, self.loader, self.optimizer = model, train_dataloader, optimizers
        (self.sam,) = algorithms
        self.size = device_train_microbatch_size

    def fit(self) -> None:
        for number, (inputs, targets) in enumerate(self.loader, start=1):
            parts = list(
                zip(inputs.split(self.size or len(inputs)), targets.split(self.size or len(inputs)), strict=True)
            )

            def closure(parts: list[Any] = parts, count: int = len(inputs)) -> None:
                self.optimizer.zero_grad()
                for part in parts:
                    (self.model.loss(part) * len(part[0]) / count).backward()

            self.sam.step(number, self.optimizer, closure)
