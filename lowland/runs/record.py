"""The record of a run: what one ``run.jsonl`` says, as values; :mod:`lowland.runs.reader` makes them from files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Values = Mapping[str, float | None]  # by the name of the metric, and "loss"; None where the value is no number


@dataclass(frozen=True, kw_only=True)
class MetricRecord:
    """What a run was judged by.

    Args:
        name: The key under which its values are stored, and what it is called in a report.
        unit: What is written behind a shown value, such as ``"%"``; empty for none.
        scale: A stored value times this is the value that is shown.
        higher: Whether higher is better. False for losses and perplexity.
    """

    name: str
    unit: str = ""
    scale: float = 1.0
    higher: bool = True

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest value that can be shown: 0 to 100 for percentages, else without limit."""
        return (0.0, 100.0) if self.unit == "%" else (-math.inf, math.inf)


ACCURACY = MetricRecord(name="accuracy", unit="%", scale=100.0)
"""The metric of run files that name none."""


@dataclass(frozen=True, kw_only=True)
class MethodRecord:
    """The method of a run: its registry key, class, text as given (``sampa:rho=0.1``) and all fields."""

    key: str
    cls: str
    text: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch as measured; seconds and gradients are cumulative, values of metrics are as stored, before scaling."""

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
    """The epoch with the best headline metric on the validation part, and what was measured there."""

    epoch: int
    test: Values
    validation: Values


@dataclass(frozen=True, kw_only=True)
class EndRecord:
    """What a run came to; only a finished run has one.

    ``test`` is measured at the end. ``best`` is None without a validation part; the best test value that older files
    hold was chosen on the test set, and is not read.
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
    weights_per_step: float | None = None  # gradients, weighed by the share of tensors they are for
    forwards_per_step: float | None = None  # forward passes without a gradient
    diverged: bool = False  # the training broke down: its last loss is no number, or above the first step's


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run: configuration, epochs in order, and its end where it has finished.

    ``contestant`` is the method's text and, after ``@``, the fields of a recipe of its own: ``plain@epochs=16``.
    ``metrics`` has the headline first. ``select`` says which epoch a comparison takes: the last, or the best on the
    validation part.
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

    @property
    def finished(self) -> bool:
        """Whether the run has reached its end."""
        return self.end is not None

    @property
    def metric(self) -> MetricRecord:
        """The headline metric."""
        return self.metrics[0]

    @property
    def last(self) -> float | None:
        """The headline metric on the test set at the end, as stored; None where the run has no such value."""
        return None if self.end is None else self.end.test.get(self.metric.name)

    @property
    def score(self) -> float | None:
        """The figure that a comparison takes: :attr:`last`, or the test value at the best epoch where that is selected.

        None where the run has no such value.
        """
        if self.select == "last" or self.end is None:
            return self.last
        return None if self.end.best is None else self.end.best.test.get(self.metric.name)
