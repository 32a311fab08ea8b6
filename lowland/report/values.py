"""Writes the values of a metric: scaled, with the same number of decimals in a table, and with a true minus sign."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lowland.report.summary import Row
from lowland.runs.record import ACCURACY, MetricRecord
from lowland.runs.statistics import Estimate

NONE = "–"


@dataclass(frozen=True)
class NumberFormat:
    """Formats the stored values of one metric.

    Args:
        metric: The metric.
        decimals: The number of digits after the decimal point.
    """

    metric: MetricRecord
    decimals: int = 2

    def value(self, stored: float | None) -> str:
        """A value without its unit; a dash for None."""
        return NONE if stored is None else minus(f"{self.metric.scale * stored:.{self.decimals}f}")

    def gain(self, stored: float) -> str:
        """A difference with its sign, without a unit."""
        return minus(f"{self.metric.scale * stored:+.{self.decimals}f}")

    def interval(self, estimate: Estimate, *, sign: bool = False) -> str:
        """A mean and the half-width of its interval, ``90.50 ± 6.35``; the mean alone if there is no interval."""
        mean = self.gain(estimate.mean) if sign else self.value(estimate.mean)
        return mean if estimate.half is None else f"{mean} ± {self.value(estimate.half)}"

    @property
    def unit(self) -> str:
        """The unit with a space before it; empty if the metric has no unit."""
        return f" {self.metric.unit}" if self.metric.unit else ""

    @property
    def points(self) -> str:
        """The unit of a difference with a space before it; the difference of two percentages is in points."""
        return " points" if self.metric.unit == "%" else self.unit

    def titled(self, text: str, unit: str) -> str:
        """A heading: the text, a comma and the unit; the text alone if the unit is empty."""
        return f"{text},{unit}" if unit else text


def number_format(rows: Sequence[Row]) -> NumberFormat:
    """The number format of a table: two decimals for percentages, else four digits of the smallest score."""
    metric = rows[0].metric if rows else ACCURACY
    return metric_format(metric, (row.score.mean for row in rows if row.score))


def metric_format(metric: MetricRecord, values: Iterable[float]) -> NumberFormat:
    """The number format for stored values: two decimals for percents and points, else four digits of the least."""
    if metric.unit in ("%", "points"):
        return NumberFormat(metric)
    smallest = min((abs(metric.scale * value) for value in values if value), default=1.0)
    return NumberFormat(metric, min(6, max(0, 3 - math.floor(math.log10(smallest)))))


def minus(text: str) -> str:
    """The text with true minus signs in place of hyphens."""
    return text.replace("-", "−")


def number(value: float | None, pattern: str) -> str:
    """A number in a format such as ``"{:.2f}"``; a dash for None."""
    return NONE if value is None else minus(pattern.format(value))


def plural(count: int, noun: str) -> str:
    """A count and its noun: ``1 seed``, ``3 seeds``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str], most: int = 99) -> str:
    """Names as a list in a sentence, ``a, b and c``; with more than ``most`` names, ``a, b and 5 others``."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} others"]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
