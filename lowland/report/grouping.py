"""Groups runs into tables, and describes what the runs of a table have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from lowland.runs.record import RunRecord

Heading: TypeAlias = tuple[str, ...]


def chosen(records: Iterable[RunRecord]) -> list[RunRecord]:
    """One run per contestant and seed: the latest of the finished ones, else the latest.

    Seeds are averaged, so all runs of a contestant must have been trained alike: with the recipe, the validation part
    and the code of its latest finished run. The others are left out.
    """
    best: dict[tuple[str, int], RunRecord] = {}
    for record in alike(records):
        key = (record.contestant, record.seed)
        current = best.get(key)
        if current is None or _later(record, current):
            best[key] = record
    return list(best.values())


def _later(record: RunRecord, other: RunRecord) -> bool:
    return (record.finished, record.time) >= (other.finished, other.time)


def alike(records: Iterable[RunRecord]) -> list[RunRecord]:
    """The runs that have been trained like the latest run of their contestant; a finished one goes before others."""
    runs = list(records)
    latest: dict[str, RunRecord] = {}
    for record in runs:
        current = latest.get(record.contestant)
        if current is None or _later(record, current):
            latest[record.contestant] = record
    return [record for record in runs if not unlike(record, latest[record.contestant])]


def unlike(record: RunRecord, other: RunRecord) -> list[str]:
    """What two runs of a contestant differ in beside the seed: fields of the recipe, or the words validation or code.

    Fields that only one of them has count as equal, because another version of lowland may have written it.
    """
    fields = [n for n, v in record.recipe.items() if n in other.recipe and other.recipe[n] != v]
    return fields + incomparable(record, other, ("task", "model", "method"))


def incomparable(record: RunRecord, other: RunRecord, sources: Sequence[str] = ("task", "model")) -> list[str]:
    """The words validation and code, if two runs of a table differ in the validation part or in one of the sources."""
    code = any(record.sources[s] != other.sources[s] for s in sources if s in record.sources and s in other.sources)
    return ["validation"] * (record.validation != other.validation) + ["code"] * code


def groups(records: Iterable[RunRecord]) -> dict[Heading, list[RunRecord]]:
    """Records that may stand in one table: the same task, model, label noise, metric and budget.

    The keys spell out task, model, label noise and budget. A contestant with its own recipe may also have its
    own budget. Such a contestant joins the tables of its command, else the table of its budget, else all tables of its
    task and model. Without any of these it gets its own table, or shares one with the others of its command, such as
    those that a sweep has tuned. The trials of a sweep have a table of their own.
    """
    runs = list(records)
    grouped: dict[Heading, list[RunRecord]] = {}
    for record in runs:
        if "@" not in record.contestant:
            grouped.setdefault(_heading(record), []).append(record)
    tables = {heading: list(members) for heading, members in grouped.items()}
    for record in runs:
        if "@" in record.contestant:
            for heading in _home(record, tables, runs):
                grouped.setdefault(heading, []).append(record)
    return grouped


def noise_text(record: RunRecord) -> str:
    """The label noise of an older file in words; empty without noise, or if the task's text states the noise."""
    rate = record.noise.get("rate") or 0
    return f"{100 * rate:g} % {record.noise.get('kind', '')} label noise".replace("  ", " ") if rate else ""


def budget_text(record: RunRecord) -> str:
    """The budget in words: ``880 steps``; empty where none is recorded."""
    kind, limit = record.budget.get("kind"), record.budget.get("limit")
    return f"{limit:,.10g} {kind}" if isinstance(limit, int | float) else str(kind or "")


def _heading(record: RunRecord) -> Heading:
    metric = "" if record.metric.name == "accuracy" else record.metric.name
    best = "best epoch" if record.select == "best" else ""
    parts = (record.task, record.model, noise_text(record), budget_text(record))
    return parts + tuple(filter(None, (metric, best, "trials of a sweep" if record.trial else "")))


def _home(record: RunRecord, tables: dict[Heading, list[RunRecord]], runs: list[RunRecord]) -> list[Heading]:
    """The headings of the tables that a contestant with its own recipe joins."""
    own = _heading(record)
    near = [heading for heading in tables if heading[:3] + heading[4:] == own[:3] + own[4:]]
    near = [h for h in near if tables[h][0].budget.get("kind") == record.budget.get("kind")]
    together = [h for h in near if record.command and any(r.command == record.command for r in tables[h])]
    return together or [h for h in near if h == own] or near or [_shared(record, runs)]


def _shared(record: RunRecord, runs: list[RunRecord]) -> Heading:
    """The heading with the smallest budget that a run of the same command has, beside what differs in its budget."""
    own = _heading(record)
    headings = {
        heading: run.budget.get("limit") or 0
        for run in runs
        if record.command and run.command == record.command and run.budget.get("kind") == record.budget.get("kind")
        for heading in [_heading(run)]
        if heading[:3] + heading[4:] == own[:3] + own[4:]
    }
    return min(headings, key=lambda heading: headings[heading], default=own)
