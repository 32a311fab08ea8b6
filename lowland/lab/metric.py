"""Metrics on a part of the data: name, unit, direction and computation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lowland.core.errors import ArgumentError


class Running(Protocol):
    """A metric that accumulates batches, such as an object of torchmetrics."""

    def update(self, prediction: Any, target: Any) -> None:
        """Add one batch."""

    def compute(self) -> Any:
        """The value over all batches added so far."""


def mean(totals: Tensor) -> float:
    """The first total divided by the second."""
    return float(totals[0] / totals[1])


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric, such as accuracy or perplexity.

    Args:
        name: The name, such as ``accuracy``. The name ``loss`` is reserved for the task's loss.
        update: A function ``(prediction, batch) -> totals``. The totals, shape ``(k,)``, are summed over batches; for
            example correct predictions and examples.
        compute: A function from the summed totals to the value; by default the first total divided by the second.
        torchmetrics: Replaces ``update`` and ``compute``: a class of torchmetrics, or a function that makes an object
            of one. The object gets ``(prediction, target(batch))``.
        target: The target of a batch for the torchmetrics object; by default ``batch[1]``.
        unit: The unit of displayed values, such as ``%``; "" without a unit.
        scale: The factor from a value to the displayed value, such as 100.
        higher: Whether higher values are better.

    Raises:
        ArgumentError: The name is not an identifier, or not exactly one of ``update`` and ``torchmetrics`` is given.

    Example:
        >>> hits = Metric(name="hits", update=lambda p, b: torch.stack([(p == b).sum(), torch.tensor(len(b))]))
        >>> hits.over([(torch.tensor([1, 2]), torch.tensor([1, 3]))])
        0.5
    """

    name: str
    update: Callable[[Any, Any], Tensor] | None = None
    compute: Callable[[Tensor], float] = mean
    torchmetrics: Callable[[], Running] | None = None
    target: Callable[[Any], Any] = lambda batch: batch[1]
    unit: str = ""
    scale: float = 1.0
    higher: bool = True

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name == "loss":
            raise ArgumentError(
                f"name must be a word for the run file, and not loss, but is {self.name!r}; take one such as accuracy"
            )
        if (self.update is None) == (self.torchmetrics is None):
            raise ArgumentError(
                f"{self.name} must have either update or torchmetrics, but has "
                f"{'neither' if self.update is None else 'both'}; give update=(prediction, batch) -> totals"
            )

    def begin(self) -> Count:
        """A new count over no batches."""
        return Count(self)

    def over(self, pairs: Any) -> float:
        """The value over an iterable of pairs of prediction and batch."""
        count = self.begin()
        for prediction, batch in pairs:
            count.add(prediction, batch)
        return count.value()

    def described(self) -> dict[str, Any]:
        """The metric's entry in a run file."""
        return {"name": self.name, "unit": self.unit, "scale": self.scale, "higher": self.higher}


LOSS = {"name": "loss", "unit": "", "scale": 1.0, "higher": False}
"""The loss's entry in a run file; the loss is the headline of a task without metrics."""


def _apart(running: Running) -> Running:
    """An object of torchmetrics that does not add up the ranks, because every rank evaluates all examples."""
    for part in running.modules() if isinstance(running, nn.Module) else [running]:
        if hasattr(part, "distributed_available_fn"):
            part.distributed_available_fn = _never
    return running


def _never() -> bool:
    return False


class Count:
    """Accumulates one metric over batches."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._running = None if metric.torchmetrics is None else _apart(metric.torchmetrics())
        self._totals: Tensor | None = None
        self._placed = False

    def _place(self, prediction: Any) -> None:
        """Move an object of torchmetrics to the device of the first prediction."""
        device = next((leaf.device for leaf in pytree.tree_leaves(prediction) if isinstance(leaf, Tensor)), None)
        move = getattr(self._running, "to", None)
        if not self._placed and device is not None and callable(move):
            move(device)
        self._placed = True

    def add(self, prediction: Any, batch: Any) -> None:
        """Add one batch.

        Raises:
            ArgumentError: ``update`` returned totals that are not of shape ``(k,)``.
        """
        if self._running is not None:
            self._place(prediction)
            self._running.update(prediction, self._metric.target(batch))
            return
        assert self._metric.update is not None
        totals = torch.as_tensor(self._metric.update(prediction, batch)).double()
        if totals.ndim != 1:
            raise ArgumentError(
                f"update of {self._metric.name} must return totals of shape (k,), but returned shape "
                f"{tuple(totals.shape)}; stack them, such as torch.stack([hits, examples])"
            )
        name, before = self._metric.name, self._totals
        if self._metric.compute is mean and len(totals) != 2:
            raise ArgumentError(
                f"update of {name} must return two totals, of which the first is divided by the second, but returned "
                f"{len(totals)}; return sums over the batch, such as torch.stack([hits, examples]), or give compute"
            )
        if before is not None and before.shape != totals.shape:
            raise ArgumentError(
                f"update of {name} must return as many totals for every batch, but returned {len(totals)} after "
                f"{len(before)}; return sums over the batch, not one value for each example"
            )
        self._totals = totals if before is None else before + totals

    def value(self) -> float:
        """The value over all batches; NaN if there were none."""
        if self._running is not None:
            return float(self._running.compute())
        return float("nan") if self._totals is None else float(self._metric.compute(self._totals))
