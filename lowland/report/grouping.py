"""Which runs stand in one table, and what they have in common, in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from lowland.runs.record import RunRecord

Heading: TypeAlias = tuple[str, ...]


def chosen(records: Iterable[RunRecord]) -> list[RunRecord]:
    """One run per contestant and seed: the latest of the finished ones, else the latest."""
    best: dict[tuple[str, int], RunRecord] = {}
    for record in records:
        place = (record.contestant, record.seed)
        held = best.get(place)
        if held is None or (record.finished, record.time) >= (held.finished, held.time):
            best[place] = record
    return list(best.values())


def groups(records: Iterable[RunRecord]) -> dict[Heading, list[RunRecord]]:
    """Records that may stand in one table: the same task, model, label noise, metric and budget.

    The keys spell out task, model, label noise and budget. A contestant with a recipe of its own may have a budget of
    its own. It joins the comparison that the same command made, else that of its own budget, else every one of its task
    and model; where there is none, it stands alone.
    """
    runs = list(records)
    found: dict[Heading, list[RunRecord]] = {}
    for record in runs:
        if "@" not in record.contestant:
            found.setdefault(_heading(record), []).append(record)
    tables = {heading: list(members) for heading, members in found.items()}
    for record in runs:
        if "@" in record.contestant:
            for heading in _home(record, tables):
                found.setdefault(heading, []).append(record)
    return found


def noise_text(record: RunRecord) -> str:
    """The label noise of an older file in words; empty without noise, and where the text of the task has it."""
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
    return parts + tuple(filter(None, (metric, best)))


def _home(record: RunRecord, tables: dict[Heading, list[RunRecord]]) -> list[Heading]:
    """The tables that a contestant with a recipe of its own stands in."""
    own = _heading(record)
    near = [heading for heading in tables if heading[:3] + heading[4:] == own[:3] + own[4:]]
    near = [h for h in near if tables[h][0].budget.get("kind") == record.budget.get("kind")]
    together = [h for h in near if record.command and any(r.command == record.command for r in tables[h])]
    return together or [h for h in near if h == own] or near or [own]
