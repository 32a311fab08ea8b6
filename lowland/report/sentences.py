"""The sentences of a comparison: the verdict and the notes, computed from its rows and runs."""

from __future__ import annotations

from collections.abc import Sequence

from lowland.report.grouping import alike, chosen, unlike
from lowland.report.summary import MIN_EPOCHS, Row, advantage, is_short, summarize, too_short
from lowland.report.values import NumberFormat, listed, number_format, plural
from lowland.runs.record import RunRecord
from lowland.runs.statistics import LEVEL

SLACK = 1.02  # costs within 2 % are equal: batches do not always divide an epoch


def verdict(rows: Sequence[Row]) -> str:
    """The verdict: which trainings diverged, and which contestant is recommended, or why none is.

    The verdict recommends the contestant with the largest gain that is significant after Holm's correction. A plain
    training of no higher cost blocks the recommendation in two cases: its gain is as large, or it is itself better
    than the baseline and the contestant does not beat it over their common seeds (p < 0.05). The cost is the number
    of gradients of the whole training, or its time where the number is unknown.
    """
    base = next((row for row in rows if row.baseline), None)
    rivals = [row for row in rows if row.difference is not None]
    divergence = " ".join(filter(None, [diverged(rows), undefined(rows), unlike_baseline(rows)]))
    if rows and all(row.diverged for row in rows):
        return f"{divergence} Nothing can be compared; a lower learning rate is the first thing to try."
    if rows and all(row.diverged or row.undefined for row in rows):
        return f"{divergence} Nothing can be compared."
    if base is not None and (base.diverged or base.undefined):
        return f"{divergence} Nothing can be said of the others without a baseline."
    if divergence and not rivals:
        return divergence
    short = [row for row in rivals if is_short(row)]
    if too_short(rows) is not None or len(short) == len(rivals):
        return f"{divergence} {_verdict(rows, base, rivals)}".strip()
    others = [row for row in rivals if row not in short]
    return f"{divergence} {_verdict(rows, base, others)} {_left_out(short)}".strip()


def diverged(rows: Sequence[Row]) -> str:
    """The sentence that lists the diverged trainings; empty where none diverged."""
    clauses = [f"{row.label} diverged in {len(row.diverged)} of {len(row.seeds)} seeds" for row in rows if row.diverged]
    return f"{listed(clauses)}." if clauses else ""


def undefined(rows: Sequence[Row]) -> str:
    """The sentence that lists the trainings whose metric has no value; empty where all have one."""
    clauses = [f"{row.label} in seed {listed(list(map(str, row.undefined)))}" for row in rows if row.undefined]
    name = rows[0].metric.name if rows else ""
    return f"The {name} is undefined, such as 0 divided by 0, for {listed(clauses)}." if clauses else ""


def unlike_baseline(rows: Sequence[Row]) -> str:
    """The sentence that lists the contestants whose data or code are not the baseline's; empty where there are none."""
    base = next((row.label for row in rows if row.baseline), "")
    words = {"validation": "validation part", "code": "code of the task or the model"}
    clauses = [f"{row.label} with another {listed([words[w] for w in row.unlike])}" for row in rows if row.unlike]
    return f"Not compared with {base}, because trained otherwise: {listed(clauses)}." if clauses else ""


def _left_out(short: Sequence[Row]) -> str:
    """The sentence that lists the contestants that trained for too few epochs; empty where there are none."""
    clauses = [f"{row.label} trained for {plural(row.epochs or 0, 'epoch')}" for row in short]
    return f"{listed(clauses)}, too short to compare with the others." if clauses else ""


def notes(records: Sequence[RunRecord]) -> list[str]:
    """The caveats of the table of these records, one sentence each."""
    counted, sentences = chosen(records), []
    unfinished = [f"{r.contestant} seed {r.seed}" for r in counted if not r.finished]
    if unfinished:
        sentences.append(f"Unfinished and not counted: {', '.join(unfinished)}.")
    same = alike(records)
    if len(same) < len(records):
        others = sorted(
            {field for r in records for s in same if s.contestant == r.contestant for field in unlike(r, s)}
        )
        sentences.append(
            f"{len(records) - len(same)} of {len(records)} runs are left out, because the latest run of their method "
            f"was trained otherwise ({listed(others)}); name their folders alone for a table of their own."
        )
    if len(counted) < len(same):
        sentences.append(f"{len(same) - len(counted)} of {len(same)} runs repeat a method and seed; the latest counts.")
    finished = [r for r in counted if r.finished]
    sentences += _uncounted(finished)
    if len({tuple(sorted(map(str, r.machine.items()))) for r in finished}) > 1:
        sentences.append("The runs come from different machines or settings: their times do not compare.")
    if len({r.versions.get("torch") for r in finished}) > 1:
        sentences.append("The runs were made with different versions of torch.")
    if len({tuple(row.seeds) for row in summarize(counted) if row.seeds}) > 1:
        sentences.append("Not every method has the same seeds; differences are taken over the common ones.")
    return sentences


def _verdict(rows: Sequence[Row], base: Row | None, rivals: Sequence[Row]) -> str:
    if not any(row.score for row in rows):
        return "No run has finished yet."
    if rivals and (too_short(rows) is not None or all(map(is_short, rivals))):
        epochs = too_short(rows) or max(row.epochs or 0 for row in rivals)
        return (
            f"Nothing can be recommended: a training of {plural(epochs, 'epoch')} is too short to compare methods. Far "
            f"from any minimum a perturbation only slows it down. Take {MIN_EPOCHS} epochs or more."
        )
    if base is None or base.score is None:
        return f"Nothing can be recommended without a finished baseline. {_leader(rows)}."
    if not rivals:
        style = number_format(rows)
        return f"{base.label} stands alone at {style.value(base.score.mean)}{style.unit}: nothing to compare."
    if all(row.difference and row.difference.half is None for row in rivals):
        return f"Nothing can be recommended: one seed decides nothing, so take several. {_leader(rows)}."
    return _recommended(base, rivals, number_format(rows))


def _recommended(base: Row, rivals: Sequence[Row], style: NumberFormat) -> str:
    better = [row for row in rivals if row.effect == "better"]
    better.sort(key=lambda row: -(row.difference.mean if row.difference else 0))
    blocked: list[Row] = []
    for row in better:
        if _plain_instead(row, rivals) is None:
            sentence = f"Take {row.label}: {_gain(row, base, style)}, {_chance(row, rivals)}, at {_price(row, base)}."
            return f"{sentence} {_passed(blocked)}".strip()
        blocked.append(row)
    if blocked:
        row, plain = blocked[0], _plain_instead(blocked[0], rivals)
        return (
            f"Nothing can be recommended: {row.label} has {_gain(row, base, style)} at {_price(row, base)}, but "
            f"{plain.label if plain else base.label} gains as much at no higher cost, which may itself be chance."
        )
    return _nothing(base, rivals, style)


def _nothing(base: Row, rivals: Sequence[Row], style: NumberFormat) -> str:
    subject = rivals[0].label if len(rivals) == 1 else f"none of {len(rivals)} contestants"
    predicate = "is not shown" if len(rivals) == 1 else "is shown"
    seeds = max(row.difference.n for row in rivals if row.difference)
    lead = f"{subject} {predicate} to be better than {base.label}"
    sentence = f"Nothing can be recommended: {lead} over {plural(seeds, 'seed')}."
    leader = max(rivals, key=lambda row: row.difference.mean if row.difference else 0)
    if leader.difference is None or leader.difference.mean <= 0:
        return sentence
    if leader.p is None:
        return f"{sentence} {leader.label} has {_gain(leader, base, style)} in every seed, which no test can judge."
    rest = f"{_gain(leader, base, style)}, {_chance(leader, rivals)}, at {_price(leader, base)}"
    return f"{sentence} {leader.label} comes first with {rest}."


def _plain_instead(row: Row, rivals: Sequence[Row]) -> Row | None:
    """The plain training that costs no more than a contestant and gains as much; None if no training does."""
    for plain in rivals:
        if plain is row or not plain.plain or plain.difference is None or row.difference is None:
            continue
        cost, plain_cost = (row.work, plain.work) if row.work and plain.work else (row.duration, plain.duration)
        if cost is None or plain_cost is None or plain_cost > SLACK * cost:
            continue
        lead = advantage(row.metric, row.scores, plain.scores)
        beaten = lead is not None and lead.mean > 0 and lead.p is not None and lead.p < LEVEL
        if plain.difference.mean >= row.difference.mean or (plain.effect == "better" and not beaten):
            return plain
    return None


def _passed(blocked: Sequence[Row]) -> str:
    """The sentence that says why contestants with a larger gain are not recommended."""
    if not blocked:
        return ""
    names, verbs = listed([row.label for row in blocked], 4), ("costs", "is") if len(blocked) == 1 else ("cost", "are")
    return f"{names} {verbs[0]} no less and {verbs[1]} not shown to gain more than plain training does at that cost."


def _gain(row: Row, base: Row, style: NumberFormat) -> str:
    """A row's gain in words; for a metric that should be low, the gain reads "below the baseline's"."""
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
    """A row's cost in words: per step, and of the whole training where the number of steps differs."""
    parts = [] if row.gradients is None else [f"{row.gradients:.2f} gradients"]
    if row.time is not None:
        parts.append(f"{row.time:.2f}\u00a0× {base.label}'s time")
    elif row.seconds is not None:
        parts.append(f"{1000 * row.seconds:.3g} ms")
    text = f"{listed(parts)} per step" if parts else "unknown cost"
    if row.steps and base.steps and not 1 / SLACK < row.steps / base.steps < SLACK and row.work is not None:
        time = "" if row.duration is None else f" and {row.duration:.2f}\u00a0× the time"
        text += f", {row.work:.2f}\u00a0× the gradients{time} of the whole training"
    return text


def _leader(rows: Sequence[Row]) -> str:
    style = number_format(rows)
    scores = [(row.score.mean, row.label) for row in rows if row.score]
    mean, label = (max if style.metric.higher else min)(scores)
    return f"{label} has the best {style.metric.name}, {style.value(mean)}{style.unit}"


def _uncounted(finished: Sequence[RunRecord]) -> list[str]:
    """Sentences about costs that gradients per step omit: forward passes, and gradients of only some tensors."""
    sentences = []
    for name in dict.fromkeys(r.contestant for r in finished):
        end = next(r.end for r in finished if r.contestant == name)
        if end is None or end.gradients_per_step is None:
            continue
        if (end.forwards_per_step or 0) > 0.005:
            count = f"{end.forwards_per_step:.2g}"
            passes = "forward pass" if count == "1" else "forward passes"
            sentences.append(f"{name} also takes {count} {passes} a step, not counted as gradients.")
        if end.weights_per_step is not None and end.weights_per_step < end.gradients_per_step - 0.005:
            fraction = end.weights_per_step / end.gradients_per_step
            sentences.append(
                f"{name} takes its gradients for some tensors only, {100 * fraction:.0f} % of them on average."
            )
    return sentences
