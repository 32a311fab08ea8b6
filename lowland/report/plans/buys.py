"""Whether plain training with twice the steps is the better buy than a method, by the runs of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot

from lowland.report.grouping import groups
from lowland.report.page import group_title
from lowland.report.plans.record import PlanRecord, PredictionRecord
from lowland.report.sentences import SLACK
from lowland.report.summary import MIN_EPOCHS, Row, advantage, is_short, summarize
from lowland.report.values import NumberFormat, number_format, plural
from lowland.runs.record import RunRecord
from lowland.runs.statistics import Effect, Estimate, effect, holm


@dataclass(frozen=True)
class Price:
    """What a training is predicted to take.

    Args:
        steps: Its steps.
        step: The prediction of a step.
    """

    steps: float
    step: PredictionRecord

    @property
    def seconds(self) -> float:
        """The seconds of all steps."""
        return self.steps * self.step.seconds

    def __str__(self) -> str:
        return f"{self.steps:,.0f} steps × {1e3 * self.step.seconds:.2f} ms = {self.seconds:,.1f} s"


def buys(records: Sequence[RunRecord], plan: PlanRecord) -> list[str]:
    """Sentences for each comparison and each of its methods.

    A method is compared with plain training of the same recipe and twice the epochs, over their common seeds. P values
    are corrected for the number of methods by Holm's method.

    Args:
        records: The runs.
        plan: The plan, whose predicted times are multiplied by the steps of the runs.
    """
    return [sentence for group in groups(records).values() for sentence in _of_group(group, plan)]


def _of_group(records: Sequence[RunRecord], plan: PlanRecord) -> list[str]:
    rows, title = summarize(records), group_title(records)
    base = next((row for row in rows if row.baseline), None)
    double = next((row for row in rows if base is not None and _is_double(row, base)), None)
    if base is None or double is None:
        return [
            f"{title}: not known, because no finished plain training has twice the steps of plain; add the method "
            "equal-cost to lowland compare."
        ]
    if double.score is None:
        return [f"{title}: not known, because {double.label} diverged or has no finished run."]
    style, methods = number_format(rows), [row for row in rows if not row.plain and "@" not in row.label]
    differences = [_difference(row, double) for row in methods]
    values = holm([None if d is None else d.p for d in differences])
    fits = _fits(records[0], plan)
    lead = (
        f"{title}: {double.label} has twice the steps of plain and scores {style.interval(double.score)}{style.unit}."
    )
    if not methods:
        return [f"{lead} There is no method to compare it with."]
    return [lead] + [
        _sentence(row, double, d, p, style, plan if fits else None)
        for row, d, p in zip(methods, differences, values, strict=True)
    ]


def _is_double(row: Row, base: Row) -> bool:
    """Whether a row is plain training that differs from the baseline by having twice the epochs only."""
    if not row.plain or row.baseline or not set(row.recipe) <= {"epochs"} or not base.steps or not row.steps:
        return False
    return 2 / SLACK <= row.steps / base.steps <= 2 * SLACK


def _difference(row: Row, double: Row) -> Estimate | None:
    return None if is_short(row) else advantage(row.metric, row.scores, double.scores)


def _fits(record: RunRecord, plan: PlanRecord) -> bool:
    """Whether the plan is about this training."""
    size = record.recipe.get("batch_size", plan.surveys[0].examples)
    return (record.task, record.model, size) == (plan.task, plan.model, plan.surveys[0].examples)


def _sentence(
    row: Row, double: Row, d: Estimate | None, p: float | None, style: NumberFormat, plan: PlanRecord | None
) -> str:
    if row.score is None:
        return f"{row.label}: not known, because it diverged or has no finished run."
    if is_short(row):
        return (
            f"{row.label}: not known, because {plural(row.epochs or 0, 'epoch')} are too short to compare methods; "
            f"take {MIN_EPOCHS} or more."
        )
    if d is None:
        return f"{row.label}: not known, because it has no seed in common with {double.label}."
    mine, other = _price(row, plan), _price(double, plan)
    scored = f"{row.label} scores {style.interval(row.score)}{style.unit}, {_against(d, p, style)} {double.label}"
    if d.half is None:
        return f"{scored}. Not known: one seed decides nothing."
    return f"{scored}. {_verdict(row.label, double.label, effect(d, p), mine, other)}"


def _against(d: Estimate, p: float | None, style: NumberFormat) -> str:
    sign = "better than" if d.mean >= 0 else "worse than"
    size = Estimate(abs(d.mean), d.half, d.n, d.p)
    chance = "" if p is None else f" (p {'< 0.001' if p < 0.001 else f'= {p:.2g}'})"
    return f"{style.interval(size)}{style.points}{chance} {sign}"


def _price(row: Row, plan: PlanRecord | None) -> Price | None:
    """What the training of a row is predicted to take; None if the plan is about another one."""
    if plan is None or row.steps is None:
        return None
    step = plan.fastest().get(row.contestant.partition("@")[0])
    return None if step is None else Price(row.steps, step)


def _verdict(name: str, plain: str, effect: Effect, mine: Price | None, other: Price | None) -> str:
    """The verdict on a method, by what is shown of its score and what is predicted of its time."""
    scored = {
        "better": f"{name} scores better",
        "worse": f"{plain} scores better",
        "open": "No difference of the scores is shown",
    }[effect]
    if mine is None or other is None:
        return f"{scored}, but which one is the better buy is not known: the plan is about another training or method."
    priced = f"Predicted: {mine}, against {other}."
    if mine.step.error is None or other.step.error is None:
        return f"{priced} {scored}, but the error of these times is not known, so nothing follows from them."
    error = hypot(mine.step.error * mine.seconds, other.step.error * other.seconds)
    alike = abs(mine.seconds - other.seconds) <= error
    cheaper = "" if alike else name if mine.seconds < other.seconds else plain
    winner = {"better": name, "worse": plain, "open": cheaper}[effect]
    if not winner:
        return f"{priced} {scored}, and their times differ by less than their error: neither is the better buy."
    if cheaper in ("", winner):
        return f"{priced} {scored}: {winner} is the better buy{'' if effect != 'open' else ', being cheaper'}."
    ratio = max(mine.seconds, other.seconds) / min(mine.seconds, other.seconds)
    return f"{priced} {scored}, but takes {ratio:.2f} times as long: which one is the better buy is your choice."
