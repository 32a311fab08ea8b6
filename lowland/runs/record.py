"""The contents of one ``run.jsonl`` as dataclasses, which :mod:`lowland.runs.reader` reads from files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lowland.runs.measures import Measure

Values = Mapping[str, float | None]  # by the name of the metric or "loss"; None if the value is not finite


@dataclass(frozen=True, kw_only=True)
class MetricRecord:
    """A metric of a run.

    Args:
        name: The key of its values in the run file, and its name in a report.
        unit: The unit of displayed values, such as ``"%"``; empty without a unit.
        scale: The factor from a stored value to the displayed value.
        higher: Whether higher values are better. False for losses and perplexity.
    """

    name: str
    unit: str = ""
    scale: float = 1.0
    higher: bool = True

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest possible displayed value: 0 and 100 for percentages, else infinite."""
        return (0.0, 100.0) if self.unit == "%" else (-math.inf, math.inf)


ACCURACY = MetricRecord(name="accuracy", unit="%", scale=100.0)
"""The metric of run files that list no metrics."""


@dataclass(frozen=True, kw_only=True)
class MethodRecord:
    """The method of a run: its key in ``METHODS``, its class, its text (``sampa:rho=0.1``) and all its fields."""

    key: str
    cls: str
    text: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """The measurements after one epoch.

    Seconds and gradients are summed from the start of the run. The values of metrics are as stored, before scaling.
    """

    epoch: int
    step: int
    train_loss: float | None
    test: Values
    seconds: float | None
    gradients: float | None
    sequential: float | None
    train: Values = field(default_factory=dict)
    validation: Values = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BestRecord:
    """The epoch with the best headline metric on the validation part, and the metrics after it."""

    epoch: int
    test: Values
    validation: Values


@dataclass(frozen=True, kw_only=True)
class EndRecord:
    """The final measurements of a finished run.

    ``test`` is measured after the last step. ``best`` is None without a validation part. Older files have a best test
    value that was chosen on the test set; it is not read.
    """

    epochs: int
    step: int
    test: Values
    seconds: float | None
    seconds_per_step: float | None
    gradients_per_step: float | None
    sequential_per_step: float | None
    peak_memory: float | None
    m_sharpness: float | None
    weights_sha256: str
    best: BestRecord | None = None
    weights_per_step: float | None = None  # gradients, weighted by the fraction of tensors that they cover
    forwards_per_step: float | None = None  # forward passes without a gradient
    diverged: bool = False  # the last epoch's loss is not finite, or above that of the initial weights


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run: its configuration, its epochs in order, and its final measurements if it has finished.

    ``contestant`` is the method's text and, after ``@``, the fields of its own recipe: ``plain@epochs=16``. The first
    of ``metrics`` is the headline. ``select`` is the epoch whose metrics a comparison uses: the last, or the best on
    the validation part. ``pruned`` is the epoch after which a sweep ended the run before its budget was used up.
    ``measures`` are those of the final weights, taken after the training.
    """

    path: Path
    run: str
    time: str
    task: str
    model: str
    seed: int
    method: MethodRecord
    contestant: str
    metrics: tuple[MetricRecord, ...]
    select: Literal["best", "last"]
    recipe: Mapping[str, Any]
    noise: Mapping[str, Any]
    budget: Mapping[str, Any]
    parameters: int | None
    versions: Mapping[str, Any]
    machine: Mapping[str, Any]
    command: str | None
    epochs: tuple[EpochRecord, ...]
    resumed: int
    warnings: tuple[str, ...]
    end: EndRecord | None
    pruned: int | None = None
    measures: tuple[Measure, ...] = ()
    validation: float = 0.0  # the fraction of the training part that was held out
    trial: bool = False  # whether a sweep has trained it
    sources: Mapping[str, str] = field(default_factory=dict)  # hashes of the user's own task, model and method

    @property
    def finished(self) -> bool:
        """Whether the run has finished."""
        return self.end is not None

    @property
    def metric(self) -> MetricRecord:
        """The headline metric."""
        return self.metrics[0]

    @property
    def last(self) -> float | None:
        """The headline metric on the test set at the end, as stored; None if the run has no such value."""
        return None if self.end is None else self.end.test.get(self.metric.name)

    @property
    def score(self) -> float | None:
        """The value that a comparison uses: :attr:`last`, or with ``select="best"`` the test value at the best epoch.

        None if the run has no such value.
        """
        if self.select == "last" or self.end is None:
            return self.last
        return None if self.end.best is None else self.end.best.test.get(self.metric.name)
