"""What is measured on a part of the data: a name, a unit, a direction, and how it is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lowland.core.errors import ArgumentError


class Running(Protocol):
    """A metric while batches come in; torchmetrics' classes are of this kind."""

    def update(self, prediction: Any, target: Any) -> None:
        """Count one batch."""

    def compute(self) -> Any:
        """The value over all batches so far."""


def mean(totals: Tensor) -> float:
    """The first total divided by the second."""
    return float(totals[0] / totals[1])


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure of merit, such as accuracy or perplexity.

    Args:
        name: Its name, such as ``accuracy``; ``loss`` is taken by the task's loss.
        update: ``(prediction, batch) -> totals``, shape ``(k,)``, which add up over batches; such as hits and examples.
        compute: From the sum of the totals to the value; by default the first divided by the second.
        torchmetrics: In place of both: a class of torchmetrics, or a function that makes an object of one, which gets
            ``(prediction, batch[1])``, or what ``target`` gives.
        target: What the torchmetrics object is shown of a batch.
        unit: What stands behind the figure, such as ``%``; "" for none.
        scale: What a value is multiplied by where it is shown with its unit, such as 100.
        higher: Whether more is better.

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
        """A fresh count."""
        return Count(self)

    def over(self, pairs: Any) -> float:
        """The value over pairs of prediction and batch."""
        count = self.begin()
        for prediction, batch in pairs:
            count.add(prediction, batch)
        return count.value()

    def described(self) -> dict[str, Any]:
        """What a run file says of it."""
        return {"name": self.name, "unit": self.unit, "scale": self.scale, "higher": self.higher}


LOSS = {"name": "loss", "unit": "", "scale": 1.0, "higher": False}
"""What a run file says of the loss, which is the headline of a task without metrics."""


class Count:
    """A metric over the batches seen so far."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._running = None if metric.torchmetrics is None else metric.torchmetrics()
        self._totals: Tensor | None = None
        self._placed = False

    def _place(self, prediction: Any) -> None:
        """Move an object of torchmetrics to where the first prediction is."""
        device = next((leaf.device for leaf in pytree.tree_leaves(prediction) if isinstance(leaf, Tensor)), None)
        move = getattr(self._running, "to", None)
        if not self._placed and device is not None and callable(move):
            move(device)
        self._placed = True

    def add(self, prediction: Any, batch: Any) -> None:
        """Count one batch."""
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
        self._totals = totals if self._totals is None else self._totals + totals

    def value(self) -> float:
        """The value; not a number where no batch was seen."""
        if self._running is not None:
            return float(self._running.compute())
        return float("nan") if self._totals is None else float(self._metric.compute(self._totals))
