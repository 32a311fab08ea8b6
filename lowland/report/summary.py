"""Summarizes runs: one row of the table per contestant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from lowland.report.grouping import chosen, incomparable
from lowland.runs.measures import Measure
from lowland.runs.record import ACCURACY, EndRecord, MetricRecord, RunRecord
from lowland.runs.statistics import Effect, Estimate, effect, estimate, holm, paired

MIN_EPOCHS = 8
"""The epochs that a training needs at least, so that methods are compared.

Early in training a network is far from any minimum, flat or sharp, and every radius only slows it down. After two
epochs of CIFAR-10, SAM with its published radius of 0.05 is 1.8 points below plain training; after eight epochs it is
equal (docs/results.md).
"""


@dataclass(frozen=True)
class Measured:
    """A measure of the final weights of several seeds.

    Args:
        measure: The measure of the first seed, with its title, unit and settings.
        estimate: Mean and interval over the seeds, as stored, before scaling; None if a seed has no finite value.
        seeds: The number of seeds.
        undefined: The number of seeds whose value is not finite, such as after a second training that diverged.
    """

    measure: Measure
    estimate: Estimate | None
    seeds: int = 1
    undefined: int = 0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contestant over its finished seeds: a method, and possibly a recipe of its own.

    Values of the metric are as stored, before scaling; times are in seconds, memory is in bytes. A value is None if no
    run recorded it. A difference is positive if the contestant is better, also for a metric whose lower values are
    better.
    """

    contestant: str
    label: str  # the method's key if no other row has it, else the method's full text; then "@" and the own recipe
    baseline: bool
    plain: bool  # whether the method is plain training, with any recipe
    metric: MetricRecord = ACCURACY
    fields: Mapping[str, Any] = field(default_factory=dict)  # the method's hyperparameters
    recipe: Mapping[str, Any] = field(default_factory=dict)  # the fields that differ from the baseline's recipe
    seeds: tuple[int, ...]
    unfinished: tuple[int, ...]
    scores: Mapping[int, float]  # the headline metric of each seed, at the epoch that the run selects
    score: Estimate | None
    last: Estimate | None  # the metric at the end of the training, if the score is that of the best epoch
    difference: Estimate | None  # to the baseline, paired over the common seeds; None for the baseline itself
    p: float | None  # the p value of the difference, corrected for the number of comparisons in the table
    effect: Effect | None
    undefined: tuple[int, ...] = ()  # finished seeds whose metric has no value; if there are any, likewise
    unlike: tuple[str, ...] = ()  # how the data or the code differ from the baseline's; if they do, likewise
    diverged: tuple[int, ...]  # the seeds whose training diverged; if there are any, the contestant is not compared
    epochs: int | None  # the epochs of the shortest finished run
    steps: float | None
    gradients: float | None  # per step, in full-batch equivalents
    sequential: float | None  # gradients on the critical path, per step
    seconds: float | None  # per step, median over seeds
    time: float | None  # seconds per step relative to the baseline's, median over common seeds
    work: float | None  # gradients of the whole training relative to the baseline's
    duration: float | None  # seconds of the whole training relative to the baseline's, median over common seeds
    memory: float | None  # peak memory, median over seeds
    memory_ratio: float | None  # peak memory relative to the baseline's, median over common seeds
    sharpness: float | None  # m-sharpness, mean over seeds
    measures: Mapping[str, Measured] = field(default_factory=dict)  # of the final weights, by ``Measure.key``


def summarize(records: Sequence[RunRecord], baseline: str = "plain") -> list[Row]:
    """One row per contestant: the baseline first, the others in the order of the records.

    P values are corrected for the number of comparisons by Holm's method. Trainings below 8 epochs get no p values. A
    contestant that diverged in any seed is not compared, nor is one whose validation part or code of the task or the
    model is not the baseline's. If the baseline diverged, no contestant is compared.

    If a contestant has several runs with one seed, the latest finished run counts. Unfinished runs are only listed.

    Args:
        records: The runs of one group (see :func:`~lowland.report.grouping.groups`).
        baseline: The text or the key of the method that the others are compared with. Its run has no recipe of its
            own; where none is like this, as after a sweep, it is the first run of this method with the smallest budget.
    """
    runs = chosen(records)
    by_name: dict[str, list[RunRecord]] = {}
    for run in runs:
        by_name.setdefault(run.contestant, []).append(run)
    keys = {name: members[0].method.key for name, members in by_name.items()}
    reference = baseline if baseline in keys else _of_method(by_name, baseline)
    base = by_name.get(reference or "", [])
    shared_recipe = _most_common_recipe(base or runs)
    rows = [
        _row(
            by_name[name],
            label=_label(name, keys),
            baseline=name == reference,
            base={run.seed: run for run in base if run.end is not None},
            shared_recipe=shared_recipe,
        )
        for name in sorted(keys, key=lambda name: name != reference)
    ]
    tested = [None if too_short(rows) or is_short(row) else row.difference for row in rows]
    values = holm([None if difference is None else difference.p for difference in tested])
    return [
        row if difference is None else replace(row, p=p, effect=effect(difference, p))
        for row, difference, p in zip(rows, tested, values, strict=True)
    ]


def is_short(row: Row) -> bool:
    """Whether the contestant trained for too few epochs to be compared."""
    return row.epochs is not None and row.epochs < MIN_EPOCHS


def too_short(rows: Sequence[Row]) -> int | None:
    """The epochs of the longest training if all are too few, or of the baseline if its are; else None."""
    baseline = [row for row in rows if row.baseline and row.epochs is not None]
    epochs = max((row.epochs for row in baseline or rows if row.epochs is not None), default=MIN_EPOCHS)
    return epochs if epochs < MIN_EPOCHS and len(rows) > 1 else None


def advantage(metric: MetricRecord, values: Mapping[int, float], others: Mapping[int, float]) -> Estimate | None:
    """The mean improvement of ``values`` over ``others``, paired by seed; positive is better for every metric."""
    return paired(values, others) if metric.higher else paired(others, values)


def _label(name: str, keys: Mapping[str, str]) -> str:
    method, at, recipe = name.partition("@")
    rivals = {other.partition("@")[0] for other, key in keys.items() if key == keys[name]}
    return (keys[name] if len(rivals) == 1 else method) + at + recipe


def _of_method(by_name: Mapping[str, Sequence[RunRecord]], key: str) -> str | None:
    """The contestant that stands for a method: the one without a recipe of its own, else the first with least budget.

    Trials of a sweep stand for nothing, because they are many.
    """
    named = [name for name, runs in by_name.items() if runs[0].method.key == key]
    bare = [name for name in named if "@" not in name]
    tuned = [name for name in named if not by_name[name][0].trial]
    return next(iter(bare), None) or min(tuned, key=lambda n: by_name[n][0].budget.get("limit") or 0, default=None)


def _most_common_recipe(records: Sequence[RunRecord]) -> Mapping[str, Any]:
    """The recipe that most of these runs have."""
    recipes = [record.recipe for record in records]
    return max(recipes, key=recipes.count, default={})


def _row(
    runs: Sequence[RunRecord],
    *,
    label: str,
    baseline: bool,
    base: Mapping[int, RunRecord],
    shared_recipe: Mapping[str, Any],
) -> Row:
    first = runs[0]
    metric = first.metric
    finished = {run.seed: run for run in runs if run.end is not None}
    ends = _ends(finished)
    ends_of_base = _ends(base)
    scores = {seed: run.score for seed, run in finished.items() if run.score is not None}
    last = {seed: run.last for seed, run in finished.items() if run.last is not None}
    diverged = tuple(sorted(seed for seed, end in ends.items() if end.diverged))
    undefined = _undefined(finished)
    sound = not any(end.diverged for end in ends_of_base.values()) and not _undefined(base)
    unlike = tuple(dict.fromkeys(what for run in base.values() for what in incomparable(first, run)))
    compared = sound and not (baseline or diverged or undefined or unlike)
    reference = {seed: run.score for seed, run in base.items() if run.score is not None}
    return Row(
        contestant=first.contestant,
        label=label,
        baseline=baseline,
        plain=first.method.key == "plain",
        metric=metric,
        fields={} if first.method.key == "plain" else first.method.fields,  # plain training ignores its radius
        recipe={name: value for name, value in first.recipe.items() if value != shared_recipe.get(name)},
        seeds=tuple(sorted(ends)),
        unfinished=tuple(sorted(run.seed for run in runs if run.end is None)),
        scores={} if diverged or undefined else scores,
        score=None if diverged or undefined else estimate(scores.values()),
        last=estimate(last.values()) if first.select == "best" and not diverged else None,
        difference=advantage(metric, scores, reference) if compared else None,
        p=None,
        effect=None,
        diverged=diverged,
        undefined=undefined,
        unlike=unlike,
        epochs=min((end.epochs for end in ends.values() if not end.diverged), default=None),
        sharpness=None if diverged else _mean(_known(ends, lambda end: end.m_sharpness)),
        measures={} if diverged else _measured(runs),
        **_costs(ends, ends_of_base),
    )


def _undefined(finished: Mapping[int, RunRecord]) -> tuple[int, ...]:
    """The seeds that have finished without diverging, but whose metric has no value, such as 0 divided by 0."""
    sound = {seed: run for seed, run in finished.items() if run.end is not None and not run.end.diverged}
    return tuple(sorted(seed for seed, run in sound.items() if run.score is None))


def _measured(runs: Sequence[RunRecord]) -> dict[str, Measured]:
    """The measures that all finished runs have, over the seeds; the others would compare different seeds."""
    finished = [run for run in runs if run.end is not None]
    by_key: dict[str, list[Measure]] = {}
    for run in finished:
        for measure in run.measures:
            by_key.setdefault(measure.key, []).append(measure)
    result: dict[str, Measured] = {}
    for key, measures in by_key.items():
        known = [m.value for m in measures if m.value is not None]
        missing = len(measures) - len(known)
        if len(measures) == len(finished):
            result[key] = Measured(measures[0], None if missing else estimate(known), len(measures), missing)
    return result


def _ends(runs: Mapping[int, RunRecord]) -> dict[int, EndRecord]:
    return {seed: run.end for seed, run in runs.items() if run.end is not None}


def _costs(ends: Mapping[int, EndRecord], base: Mapping[int, EndRecord]) -> dict[str, float | None]:
    """The costs of these runs, absolute and relative to the baseline's."""
    seconds = _known(ends, lambda end: end.seconds_per_step)
    memory = _known(ends, lambda end: end.peak_memory)
    return {
        "steps": _mean(_known(ends, lambda end: end.step)),
        "gradients": _mean(_known(ends, lambda end: end.gradients_per_step)),
        "sequential": _mean(_known(ends, lambda end: end.sequential_per_step)),
        "seconds": median(seconds.values()) if seconds else None,
        "time": _ratio(seconds, _known(base, lambda end: end.seconds_per_step)),
        "work": _ratio(_known(ends, _gradients), _known(base, _gradients)),
        "duration": _ratio(_known(ends, lambda end: end.seconds), _known(base, lambda end: end.seconds)),
        "memory": median(memory.values()) if memory else None,
        "memory_ratio": _ratio(memory, _known(base, lambda end: end.peak_memory)),
    }


def _gradients(end: EndRecord) -> float | None:
    """The gradients of the whole training."""
    return None if end.gradients_per_step is None else end.gradients_per_step * end.step


def _known(ends: Mapping[int, EndRecord], value: Callable[[EndRecord], float | None]) -> dict[int, float]:
    return {seed: number for seed, end in ends.items() if (number := value(end)) is not None}


def _mean(values: Mapping[int, float]) -> float | None:
    return sum(values.values()) / len(values) if values else None


def _ratio(values: Mapping[int, float], base: Mapping[int, float]) -> float | None:
    ratios = [values[seed] / base[seed] for seed in values if base.get(seed)]
    return median(ratios) if ratios else None
