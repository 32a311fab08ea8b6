"""The sentences that may honestly be said about a comparison, computed from its rows and runs."""

from __future__ import annotations

from collections.abc import Sequence

from lowland.report.grouping import chosen
from lowland.report.summary import RIPE, Row, advantage, summarize, too_short
from lowland.report.values import Form, form, listed, plural
from lowland.runs.record import RunRecord
from lowland.runs.statistics import LEVEL

SLACK = 1.02  # costs within 2 % are equal: batches do not always divide an epoch


def verdict(rows: Sequence[Row]) -> str:
    """What can be recommended and at what cost, or that nothing can be, and why; first what diverged.

    Recommended is the largest gain that is more than chance after Holm's correction, unless a plain training of no
    higher cost gains as much: one whose gain is as large, or one that is itself better than the baseline and that the
    contestant does not beat over their common seeds (p < 0.05). Cost is gradients of the whole training, or its time
    where gradients are unknown.
    """
    base = next((row for row in rows if row.baseline), None)
    rivals = [row for row in rows if row.difference is not None]
    lost = diverged(rows)
    if lost and all(row.diverged for row in rows):
        return f"{lost} Nothing can be compared; a lower learning rate is the first thing to try."
    if base is not None and base.diverged:
        return f"{lost} Nothing can be said of the others without a baseline."
    if lost and not rivals:
        return lost
    return f"{lost} {_verdict(rows, base, rivals)}".strip()


def diverged(rows: Sequence[Row]) -> str:
    """Which trainings broke down, in a sentence; empty where none did."""
    parts = [f"{row.label} diverged in {len(row.diverged)} of {len(row.seeds)} seeds" for row in rows if row.diverged]
    return f"{listed(parts)}." if parts else ""


def notes(records: Sequence[RunRecord]) -> list[str]:
    """What a reader must know before trusting the table of these records."""
    runs, found = chosen(records), []
    unfinished = [f"{r.contestant} seed {r.seed}" for r in runs if not r.finished]
    if unfinished:
        found.append(f"Unfinished and not counted: {', '.join(unfinished)}.")
    if len(runs) < len(records):
        found.append(f"{len(records) - len(runs)} of {len(records)} runs repeat a method and seed; the latest counts.")
    finished = [r for r in runs if r.finished]
    found += _uncounted(finished)
    if len({tuple(sorted(map(str, r.machine.items()))) for r in finished}) > 1:
        found.append("The runs come from different machines or settings: their times do not compare.")
    if len({r.versions.get("torch") for r in finished}) > 1:
        found.append("The runs were made with different versions of torch.")
    if len({tuple(row.seeds) for row in summarize(runs) if row.seeds}) > 1:
        found.append("Not every method has the same seeds; differences are taken over the common ones.")
    return found


def _verdict(rows: Sequence[Row], base: Row | None, rivals: Sequence[Row]) -> str:
    if not any(row.score for row in rows):
        return "No run has finished yet."
    if rivals and (epochs := too_short(rows)) is not None:
        return (
            f"Nothing can be recommended: a training of {plural(epochs, 'epoch')} is too short to compare methods. Far "
            f"from any minimum a perturbation only slows it down. Take {RIPE} epochs or more."
        )
    if base is None or base.score is None:
        return f"Nothing can be recommended without a finished baseline. {_leader(rows)}."
    if not rivals:
        return f"{base.label} stands alone at {form(rows).value(base.score.mean)}{form(rows).unit}: nothing to compare."
    if all(row.difference and row.difference.half is None for row in rivals):
        return f"Nothing can be recommended: one seed decides nothing, so take several. {_leader(rows)}."
    return _recommended(base, rivals, form(rows))


def _recommended(base: Row, rivals: Sequence[Row], style: Form) -> str:
    better = [row for row in rivals if row.effect == "better"]
    better.sort(key=lambda row: -(row.difference.mean if row.difference else 0))
    blocked: list[Row] = []
    for row in better:
        if _plain_instead(row, rivals) is None:
            said = f"Take {row.label}: {_gain(row, base, style)}, {_chance(row, rivals)}, at {_price(row, base)}."
            return f"{said} {_passed(blocked)}".strip()
        blocked.append(row)
    if blocked:
        row, plain = blocked[0], _plain_instead(blocked[0], rivals)
        return (
            f"Nothing can be recommended: {row.label} has {_gain(row, base, style)} at {_price(row, base)}, but "
            f"{plain.label if plain else base.label} gains as much at no higher cost, which may itself be chance."
        )
    return _nothing(base, rivals, style)


def _nothing(base: Row, rivals: Sequence[Row], style: Form) -> str:
    some = rivals[0].label if len(rivals) == 1 else f"none of {len(rivals)} contestants"
    shown = "is not shown" if len(rivals) == 1 else "is shown"
    seeds = max(row.difference.n for row in rivals if row.difference)
    said = f"Nothing can be recommended: {some} {shown} to be better than {base.label} over {plural(seeds, 'seed')}."
    first = max(rivals, key=lambda row: row.difference.mean if row.difference else 0)
    if first.difference is None or first.difference.mean <= 0:
        return said
    if first.p is None:
        return f"{said} {first.label} has {_gain(first, base, style)} in every seed, which no test can judge."
    rest = f"{_gain(first, base, style)}, {_chance(first, rivals)}, at {_price(first, base)}"
    return f"{said} {first.label} comes first with {rest}."


def _plain_instead(row: Row, rivals: Sequence[Row]) -> Row | None:
    """A plain training that costs no more than a contestant and gains as much; None where there is none."""
    for plain in rivals:
        if plain is row or not plain.plain or plain.difference is None or row.difference is None:
            continue
        mine, others = (row.work, plain.work) if row.work and plain.work else (row.duration, plain.duration)
        if mine is None or others is None or others > SLACK * mine:
            continue
        lead = advantage(row.metric, row.scores, plain.scores)
        beaten = lead is not None and lead.mean > 0 and lead.p is not None and lead.p < LEVEL
        if plain.difference.mean >= row.difference.mean or (plain.effect == "better" and not beaten):
            return plain
    return None


def _passed(blocked: Sequence[Row]) -> str:
    """Why contestants with a larger gain are not recommended."""
    if not blocked:
        return ""
    names, verbs = listed([row.label for row in blocked], 4), ("costs", "is") if len(blocked) == 1 else ("cost", "are")
    return f"{names} {verbs[0]} no less and {verbs[1]} not shown to gain more than plain training does at that cost."


def _gain(row: Row, base: Row, style: Form) -> str:
    """A row's gain in words; of a metric that falls, a gain is said to be lower."""
    if row.difference is None:
        return "no gain"
    if style.metric.higher:
        return f"{style.interval(row.difference, sign=True)}{style.points} over {base.label}"
    return f"a {style.metric.name} {style.interval(row.difference)}{style.points} below {base.label}'s"


def _chance(row: Row, rivals: Sequence[Row]) -> str:
    tested = sum(rival.p is not None for rival in rivals)
    corrected = f" after Holm's correction for {tested} comparisons" if tested > 1 else ""
    return f"p {_p(row.p)}{corrected}"


def _p(value: float | None) -> str:
    if value is None:
        return "unknown"
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"


def _price(row: Row, base: Row) -> str:
    """What a row costs: gradients and time per step, and of the whole training where it has more steps or fewer."""
    parts = [] if row.gradients is None else [f"{row.gradients:.2f} gradients"]
    if row.time is not None:
        parts.append(f"{row.time:.2f}\u00a0× {base.label}'s time")
    elif row.seconds is not None:
        parts.append(f"{1000 * row.seconds:.3g} ms")
    said = f"{listed(parts)} per step" if parts else "unknown cost"
    if row.steps and base.steps and not 1 / SLACK < row.steps / base.steps < SLACK and row.work is not None:
        time = "" if row.duration is None else f" and {row.duration:.2f}\u00a0× the time"
        said += f", {row.work:.2f}\u00a0× the gradients{time} of the whole training"
    return said


def _leader(rows: Sequence[Row]) -> str:
    style = form(rows)
    scores = [(row.score.mean, row.label) for row in rows if row.score]
    mean, label = (max if style.metric.higher else min)(scores)
    return f"{label} has the best {style.metric.name}, {style.value(mean)}{style.unit}"


def _uncounted(finished: Sequence[RunRecord]) -> list[str]:
    """What gradients per step do not tell: forward passes, and gradients for some of the tensors."""
    found = []
    for text in dict.fromkeys(r.contestant for r in finished):
        end = next(r.end for r in finished if r.contestant == text)
        if end is None or end.gradients_per_step is None:
            continue
        if (end.forwards_per_step or 0) > 0.005:
            count = f"{end.forwards_per_step:.2g}"
            passes = "forward pass" if count == "1" else "forward passes"
            found.append(f"{text} also takes {count} {passes} a step, not counted as gradients.")
        if end.weights_per_step is not None and end.weights_per_step < end.gradients_per_step - 0.005:
            share = end.weights_per_step / end.gradients_per_step
            found.append(f"{text} takes its gradients for some tensors only, {100 * share:.0f} % of them on average.")
    return found
