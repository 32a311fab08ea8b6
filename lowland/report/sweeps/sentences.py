"""The sentences about a sweep: the best trial of each contestant, how it was chosen, and what it does not show."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowland.report.values import NumberFormat, listed, metric_format, plural
from lowland.runs.sweep import ContestantRecord, Outcome, ParameterRecord, SweepRecord, TrialRecord, number

EDGE = 0.05  # a value within this fraction of a range from its end is at the edge
WORDS: dict[Outcome, str] = {
    "finished": "finished",
    "pruned": "pruned",
    "diverged": "diverged",
    "refused": "refused by the method",
    "failed": "without a finite metric",
    "running": "still running",
}


def style_of(record: SweepRecord) -> NumberFormat:
    """The number format of the metric on the validation part."""
    scores = [trial.score for each in record.contestants for trial in each.finished() if trial.score is not None]
    return metric_format(record.metric, scores)


def summary(record: SweepRecord) -> list[str]:
    """One sentence for each contestant, the best first, and the notes."""
    lines = [headline(record)] if len(record.contestants) > 1 else []
    winners = [contestant for contestant, _ in record.winners()]
    others = [each for each in record.contestants if each not in winners]
    return [*lines, *(best_sentence(each, record) for each in [*winners, *others]), *notes(record)]


def headline(record: SweepRecord) -> str:
    """The sentence about all contestants."""
    winners = record.winners()
    if not winners:
        return "No trial has finished, so there is nothing to choose."
    first, style = winners[0][1], style_of(record)
    value = f"{style.value(first.score)}{style.unit}"
    if len(record.contestants) == 1:
        return best_sentence(record.contestants[0], record, named=False)
    return (
        f"The best validation {record.metric.name} is {value}, with {first.text}. {_equal_trials(record)} "
        "Whether the contestants differ is for the comparison on the test set to say."
    )


def best_sentence(contestant: ContestantRecord, record: SweepRecord, *, named: bool = True) -> str:
    """The sentence about one contestant: its best trial, and how many trials it was chosen from.

    Args:
        contestant: The contestant.
        record: The sweep.
        named: Whether the sentence names the contestant.
    """
    best, style = contestant.best(record.metric.higher), style_of(record)
    name = f"{contestant.text}: " if named else ""
    if best is None:
        return f"{name}No trial has finished: {_counts(contestant)}."
    value = f"{style.value(best.score)}{style.unit}"
    over = "" if len(record.seeds) == 1 else f", the mean over {plural(len(record.seeds), 'seed')}"
    text = (
        f"{name}Trial {best.number} has the best validation {record.metric.name}, {value}{over}, with "
        f"{values_text(best)}; chosen from {_counts(contestant)}."
    )
    return " ".join([text, *_ties(contestant, best), *edges(contestant, best)])


def outcome(record: SweepRecord, contest: int, trial: TrialRecord) -> str:
    """The outcome of a trial on one line, for a display."""
    contestant, style = record.contestants[contest], style_of(record)
    if trial.score is None:
        text = WORDS[trial.outcome]
        if trial.outcome == "pruned" and trial.epochs:
            text += f" after epoch {trial.epochs[-1][0]}"
        return f"trial {trial.number} of {trial.text}: {text}{f' ({trial.message})' if trial.message else ''}"
    best = ", the best so far" if trial == contestant.best(record.metric.higher) else ""
    value = f"{style.value(trial.score)}{style.unit}"
    return f"trial {trial.number} of {trial.text}: validation {record.metric.name} {value}{best}"


def notes(record: SweepRecord) -> list[str]:
    """What a reader must know about the numbers."""
    texts = [
        f"All values were chosen on the validation part ({_held_out(record)}); the test part chose nothing. The best "
        "of several trials is partly luck, so its validation value is too good as an estimate."
    ]
    if len(record.seeds) == 1:
        texts.append("Each trial has one seed; small differences between trials may be chance.")
    swept = sorted({p.name for each in record.contestants for p in each.parameters if p.place == "task"})
    if swept:
        texts.append(
            f"The trials differ in the task itself ({listed(swept)}), so their validation values belong to different "
            "tasks."
        )
    pruned = sum(each.count("pruned") for each in record.contestants)
    if pruned:
        texts.append(f"{_was(pruned, 'trial')} pruned ({record.pruner}); a pruned trial has no final value.")
    running = sum(each.count("running") for each in record.contestants)
    missing = sum(max(0, each.total - len(each.trials)) for each in record.contestants)
    if running or missing:
        texts.append(f"The sweep is not complete: {running} running, {missing} not begun.")
    return texts


def edges(contestant: ContestantRecord, best: TrialRecord) -> list[str]:
    """A sentence for each field whose best value is at the edge of its range."""
    texts = []
    for parameter in contestant.parameters:
        side = _side(parameter, best.values[parameter.name])
        if side:
            texts.append(
                f"The best {parameter.name} is at the {side} edge of {parameter.text}, so a value beyond it may be "
                "better; widen the range if the field allows it."
            )
    return texts


def values_text(trial: TrialRecord) -> str:
    """The values of a trial: ``rho=0.11, lr=0.2``."""
    return ", ".join(f"{name}={value}" for name, value in trial.values.items())


def position(parameter: ParameterRecord, value: float) -> float:
    """The position of a value in a range, 0 at the lower end and 1 at the upper end; by logarithms with ``log``."""
    low, high = parameter.low or 0.0, parameter.high or 0.0
    if parameter.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def _ties(contestant: ContestantRecord, best: TrialRecord) -> list[str]:
    """The sentence about other trials with the same value."""
    ties = [trial for trial in contestant.finished() if trial.score == best.score and trial.values != best.values]
    if not ties:
        return []
    same = f"{plural(len(ties), 'other trial')} {'has' if len(ties) == 1 else 'have'} the same value"
    if best.loss is None or any(trial.loss is None or trial.loss <= best.loss for trial in ties):
        return [f"{same}."]
    return [f"{same}, but a higher validation loss."]


def _side(parameter: ParameterRecord, text: str) -> str:
    value = number(text)
    if value is None or not parameter.numeric:
        return ""
    if parameter.choices:
        points = sorted(number(choice) or 0.0 for choice in parameter.choices)
        if len(points) < 3 and parameter.low is None:
            return ""  # each of two choices is at an edge
        return "lower" if value == points[0] else "upper" if value == points[-1] else ""
    place = position(parameter, value)
    return "lower" if place <= EDGE else "upper" if place >= 1 - EDGE else ""


def _counts(contestant: ContestantRecord) -> str:
    """The trials by outcome: ``20 trials (17 finished, 3 pruned)``."""
    counts = [f"{n} {words}" for outcome, words in WORDS.items() if (n := contestant.count(outcome))]
    different = contestant.different()
    if different < len(contestant.trials):
        counts.append(f"{different} different")
    only = len(counts) == 1 and contestant.count("finished") > 0
    total = plural(len(contestant.trials), "trial")
    return total if only or not counts else f"{total} ({', '.join(counts)})"


def _equal_trials(record: SweepRecord) -> str:
    totals = sorted({each.total for each in record.contestants})
    if len(totals) == 1:
        return f"Every contestant was tuned with {plural(totals[0], 'trial')}."
    counts: Sequence[str] = [f"{each.text} ({each.total})" for each in record.contestants]
    return f"The contestants were tuned with different numbers of trials: {listed(counts)}."


def _held_out(record: SweepRecord) -> str:
    part = "a part of the data"
    if record.validation:
        part = f"{100 * record.validation:g} % of the training part"
    epoch = "the best epoch" if record.select == "best" else "the last epoch"
    return f"{part}, at {epoch}"


def _was(count: int, noun: str) -> str:
    return f"{plural(count, noun)} {'was' if count == 1 else 'were'}"
