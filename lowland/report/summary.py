"""From runs to one row per method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from lowland.runs.record import EndRecord, RunRecord
from lowland.runs.statistics import Effect, Estimate, effect, estimate, holm, paired

RIPE = 8
"""Epochs below which methods are not compared. In the beginning a network is far from any minimum, flat or sharp, and
every radius only slows it down: on two epochs of CIFAR-10 SAM with its published 0.05 stays 1.8 points behind plain
training, on eight it has caught up (docs/results.md)."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method over its finished seeds; fractions, seconds and bytes, None where nothing is known."""

    method: str
    label: str  # the key where no other row shares it, else the full text
    baseline: bool
    seeds: tuple[int, ...]
    unfinished: tuple[int, ...]
    accuracy: Estimate | None
    difference: Estimate | None  # to the baseline, paired over the common seeds; None for the baseline itself
    p: float | None  # of the difference, corrected for the number of comparisons in the table
    effect: Effect | None
    diverged: tuple[int, ...]  # seeds whose training broke down; with one of them, nothing is compared
    epochs: int | None  # of the shortest finished run
    gradients: float | None  # per step, in full-batch equivalents
    sequential: float | None  # per step, on the critical path
    seconds: float | None  # per step, median over seeds
    time: float | None  # seconds per step relative to the baseline's, median over common seeds
    memory: float | None  # peak, median over seeds
    memory_ratio: float | None
    sharpness: float | None


def summarize(records: Sequence[RunRecord], baseline: str = "plain") -> list[Row]:
    """One row per method text: the baseline first, the others in the order of the records.

    P values are corrected for the number of comparisons, after Holm; trainings below 8 epochs get none. A method that
    diverged in any seed is compared with nothing, and neither is any where the baseline diverged.

    Of several runs of one method and seed the latest finished one counts. Unfinished runs are listed only.

    Args:
        records: runs of one group (see :func:`groups`).
        baseline: text or key of the method that the others are compared with.
    """
    runs = chosen(records)
    methods = {record.method.text: record.method.key for record in runs}
    reference = baseline if baseline in methods else next((t for t, k in methods.items() if k == baseline), None)
    order = sorted(methods, key=lambda text: text != reference)
    keys = list(methods.values())
    ends: dict[str, dict[int, EndRecord]] = {text: {} for text in methods}
    for record in runs:
        if record.end is not None:
            ends[record.method.text][record.seed] = record.end
    base = ends[reference] if reference is not None else {}
    rows = [
        _row(
            text,
            label=methods[text] if keys.count(methods[text]) == 1 else text,
            baseline=text == reference,
            ends=ends[text],
            base=base,
            unfinished=tuple(sorted(r.seed for r in runs if r.method.text == text and not r.finished)),
        )
        for text in order
    ]
    values = holm([None if row.difference is None else row.difference.p for row in rows])
    return [
        row if row.difference is None or too_short(rows) else replace(row, p=p, effect=effect(row.difference, p))
        for row, p in zip(rows, values, strict=True)
    ]


def too_short(rows: Sequence[Row]) -> int | None:
    """The epochs of the shortest training, where they are too few to compare methods; else None."""
    fewest = min((row.epochs for row in rows if row.epochs is not None), default=RIPE)
    return fewest if fewest < RIPE and len(rows) > 1 else None


def _row(
    text: str,
    *,
    label: str,
    baseline: bool,
    ends: Mapping[int, EndRecord],
    base: Mapping[int, EndRecord],
    unfinished: tuple[int, ...],
) -> Row:
    accuracies = _known(ends, lambda end: end.test_accuracy)
    seconds = _known(ends, lambda end: end.seconds_per_step)
    memory = _known(ends, lambda end: end.peak_memory)
    diverged = tuple(sorted(seed for seed, end in ends.items() if end.diverged))
    compared = not (baseline or diverged or any(end.diverged for end in base.values()))
    difference = paired(accuracies, _known(base, lambda end: end.test_accuracy)) if compared else None
    return Row(
        method=text,
        label=label,
        baseline=baseline,
        seeds=tuple(sorted(ends)),
        unfinished=unfinished,
        accuracy=None if diverged else estimate(accuracies.values()),
        difference=difference,
        p=None,
        effect=None,
        diverged=diverged,
        epochs=min((end.epochs for end in ends.values() if not end.diverged), default=None),
        gradients=_mean(_known(ends, lambda end: end.gradients_per_step)),
        sequential=_mean(_known(ends, lambda end: end.sequential_per_step)),
        seconds=median(seconds.values()) if seconds else None,
        time=_ratio(seconds, _known(base, lambda end: end.seconds_per_step)),
        memory=median(memory.values()) if memory else None,
        memory_ratio=_ratio(memory, _known(base, lambda end: end.peak_memory)),
        sharpness=None if diverged else _mean(_known(ends, lambda end: end.m_sharpness)),
    )


def _known(ends: Mapping[int, EndRecord], value: Callable[[EndRecord], float | None]) -> dict[int, float]:
    return {seed: number for seed, end in ends.items() if (number := value(end)) is not None}


def _mean(values: Mapping[int, float]) -> float | None:
    return sum(values.values()) / len(values) if values else None


def _ratio(values: Mapping[int, float], base: Mapping[int, float]) -> float | None:
    ratios = [values[seed] / base[seed] for seed in values if base.get(seed)]
    return median(ratios) if ratios else None


def chosen(records: Iterable[RunRecord]) -> list[RunRecord]:
    """One run per method and seed: the latest of the finished ones, else the latest."""
    best: dict[tuple[str, int], RunRecord] = {}
    for record in records:
        place = (record.method.text, record.seed)
        held = best.get(place)
        if held is None or (record.finished, record.time) >= (held.finished, held.time):
            best[place] = record
    return list(best.values())


def groups(records: Iterable[RunRecord]) -> dict[tuple[str, ...], list[RunRecord]]:
    """Records that may stand in one table: the same task, model, label noise and budget, spelled out."""
    found: dict[tuple[str, ...], list[RunRecord]] = {}
    for record in records:
        key = (record.task, record.model, noise_text(record), budget_text(record))
        found.setdefault(key, []).append(record)
    return found


def noise_text(record: RunRecord) -> str:
    """The label noise in words; empty without noise."""
    rate = record.noise.get("rate") or 0
    return f"{100 * rate:g} % {record.noise.get('kind', '')} label noise".replace("  ", " ") if rate else ""


def budget_text(record: RunRecord) -> str:
    """The budget in words: ``880 steps``; empty where none is recorded."""
    kind, limit = record.budget.get("kind"), record.budget.get("limit")
    return f"{limit:,.10g} {kind}" if isinstance(limit, int | float) else str(kind or "")
