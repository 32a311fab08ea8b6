"""The tables of measures that were taken of the final weights, such as sharpness: one table for each command."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from lowland.report.columns import Column, value_text
from lowland.report.summary import Measured, Row
from lowland.report.values import NONE, metric_format, minus
from lowland.runs.measures import Measure
from lowland.runs.record import MetricRecord

INTERVAL = "Mean over seeds ± its 95 % t-interval; with one seed ± the standard error of the measurement."


def tables(rows: Sequence[Row]) -> dict[str, list[Column]]:
    """The columns of each group of measures, with the contestant as the first column; empty without measures."""
    measures: dict[str, Measure] = {}
    for row in rows:
        for key, measured in row.measures.items():
            if measured.measure.title:
                measures.setdefault(key, measured.measure)
    titles = _titles(measures)
    shown: dict[str, list[Column]] = {}
    for key, measure in measures.items():
        group = shown.setdefault(measure.group, [Column("method", "method", lambda row: row.contestant)])
        group.append(_column(rows, key, measure, titles[key]))
    return shown


def _column(rows: Sequence[Row], key: str, measure: Measure, title: str) -> Column:
    metric = MetricRecord(name=measure.name, unit=measure.unit, scale=measure.scale)
    known = [row.measures[key] for row in rows if key in row.measures]
    means = [each.estimate.mean for each in known if each.estimate is not None]
    decimals = metric_format(metric, means).decimals
    unit = f", {measure.unit}" if measure.unit else ""
    named = ", ".join(f"{name} {value_text(value)}" for name, value in measure.settings.items())
    sentences = [measure.help, f"Measured with {named}." if named else "", INTERVAL]

    def cell(row: Row) -> str:
        return NONE if key not in row.measures else _text(row.measures[key], decimals)

    return Column("measure", f"{title}{unit}", cell, " ".join(filter(None, sentences)))


def _text(measured: Measured, decimals: int) -> str:
    """A mean and the half-width of its interval; with one seed, the standard error of the measurement, if known."""
    measure, estimate = measured.measure, measured.estimate
    if estimate is None:
        return f"no value in {measured.undefined} of {measured.seeds}"
    pattern = f"{{:.{decimals}f}}" if decimals < 6 else "{:#.3g}"
    half = estimate.half if estimate.n > 1 else measure.error
    texts = [pattern.format(measure.scale * value) for value in (estimate.mean, half) if value is not None]
    return minus(" ± ".join(texts))


def _titles(measures: dict[str, Measure]) -> dict[str, str]:
    """A title for each measure; measures with the same title get the settings in which they differ."""
    counts = Counter((m.group, m.title) for m in measures.values())
    titles: dict[str, str] = {}
    for key, measure in measures.items():
        rivals = [m for m in measures.values() if (m.group, m.title) == (measure.group, measure.title)]
        differing = _differing(measure, rivals) if counts[measure.group, measure.title] > 1 else []
        titles[key] = ", ".join([measure.title, *differing])
    return titles


def _differing(measure: Measure, rivals: Iterable[Measure]) -> list[str]:
    others = [rival.settings for rival in rivals]
    return [
        f"{name} {value_text(value)}"
        for name, value in measure.settings.items()
        if any(settings.get(name) != value for settings in others)
    ]
