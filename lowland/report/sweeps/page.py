"""The page of a sweep as one HTML file: the best of each contestant, the map, slices, history and all trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lowland.report.page import Figure, environment, write_text
from lowland.report.sweeps.sentences import WORDS, best_sentence, headline, notes, style_of, values_text
from lowland.report.values import NONE, NumberFormat, plural
from lowland.runs.sweep import ContestantRecord, SweepRecord, TrialRecord


def write_page(record: SweepRecord, path: str | Path) -> Path:
    """Write the page atomically: after an error the old file is unchanged.

    Args:
        record: The record of the sweep.
        path: The file to write; its folder is created if missing.

    Returns:
        The path of the page.

    Raises:
        ArgumentError: The file cannot be written.
        MissingExtraError: matplotlib or Jinja2 is not installed.
    """
    return write_text(path, render(record))


def render(record: SweepRecord) -> str:
    """The page as a string."""
    from lowland.report import drawing  # here: matplotlib loads slowly, and sentences do not need it

    templates, style = environment(), style_of(record)
    return str(
        templates.get_template("sweeps/page.html").render(
            title=title(record),
            headline=headline(record),
            notes=notes(record),
            metric=_metric(style),
            contestants=[_contestant(each, record, style) for each in record.contestants],
            comparison=record.comparison,
            setting=_setting(record),
            command=record.command,
            colors=list(enumerate(drawing.COLORS, 1)),
            date=record.time[:10],
        )
    )


def title(record: SweepRecord) -> str:
    """The heading: ``digits · mlp · 2 contestants × 20 trials``."""
    totals = sorted({each.total for each in record.contestants})
    trials = "–".join(map(str, dict.fromkeys((totals[0], totals[-1]))))
    trials = f"{trials} trial{'' if trials == '1' else 's'}"
    size = trials if len(record.contestants) == 1 else f"{plural(len(record.contestants), 'contestant')} × {trials}"
    return " · ".join((record.task, record.model, size))


def _contestant(contestant: ContestantRecord, record: SweepRecord, style: NumberFormat) -> dict[str, Any]:
    best = contestant.best(record.metric.higher)
    return {
        "text": contestant.text,
        "trials": len(contestant.trials),
        "finished": contestant.count("finished"),
        "pruned": contestant.count("pruned"),
        "diverged": contestant.count("diverged"),
        "score": style.value(None if best is None else best.score),
        "chosen": NONE if best is None else values_text(best),
        "sentence": best_sentence(contestant, record, named=False),
        "map": _map(contestant, style),
        "figures": _figures(contestant, style),
        "columns": ["trial", _metric(style), *(each.name for each in contestant.parameters), "outcome", "epochs"],
        "rows": [_row(trial, contestant, style, best) for trial in _ordered(contestant, record)],
    }


def _map(contestant: ContestantRecord, style: NumberFormat) -> Figure | None:
    from lowland.report.sweeps.maps import axes_of, is_grid, map_of

    pair, svg = axes_of(contestant), map_of(contestant, style)
    if pair is None or not svg:
        return None
    names, name = " and ".join(each.name for each in pair), style.metric.name
    caption = f"Validation {name} over {names}. Darker is better; a frame marks the best trial."
    if not is_grid(contestant, pair):
        caption = (
            f"Validation {name} over {names}, a point for each trial. Darker is better; the largest point is the best "
            "trial; hollow points were pruned, crosses diverged or were refused."
        )
    if len(contestant.parameters) > 2:
        caption += " The other fields differ between the trials; of trials at one place the best is shown."
    return Figure(svg, caption, caption)


def _figures(contestant: ContestantRecord, style: NumberFormat) -> list[Figure]:
    from lowland.report.sweeps.figures import history, importance, shown, slice_of

    name, without = (
        style.metric.name,
        "Marks at the bottom have no value: hollow were pruned, crosses diverged or were refused.",
    )
    bottom = f" {without}" if any(t.score is None and t.outcome != "running" for t in contestant.trials) else ""
    scores = [style.metric.scale * trial.score for trial in contestant.finished() if trial.score is not None]
    if scores and shown(scores, style.metric) != (min(scores), max(scores)):
        bottom = f" Triangles are beyond the scale.{bottom}"
    drawn = [
        (slice_of(contestant, each, style), f"Validation {name} by {each.name}; the best trial is large.{bottom}")
        for each in contestant.parameters
    ]
    drawn.append((history(contestant, style), f"Validation {name} by trial; the line is the best so far.{bottom}"))
    count = contestant.count("finished")
    caption = (
        f"The share of each field in the variation of the {name} (fANOVA, from {plural(count, 'finished trial')}). It "
        "depends on the ranges, and is rough with few trials."
    )
    drawn.append((importance(contestant.importance), caption))
    return [Figure(svg, caption, caption) for svg, caption in drawn if svg]


def _ordered(contestant: ContestantRecord, record: SweepRecord) -> list[TrialRecord]:
    sign = -1 if record.metric.higher else 1
    return sorted(contestant.trials, key=lambda t: (t.score is None, sign * (t.score or 0.0), t.number))


def _row(
    trial: TrialRecord, contestant: ContestantRecord, style: NumberFormat, best: TrialRecord | None
) -> dict[str, Any]:
    values = [trial.values.get(each.name, NONE) for each in contestant.parameters]
    epochs = str(trial.epochs[-1][0]) if trial.epochs else NONE
    return {
        "best": trial == best,
        "title": ", ".join(trial.runs),
        "cells": [str(trial.number), style.value(trial.score), *values, WORDS[trial.outcome], epochs],
        "remark": f"trial {trial.number}: {trial.message}" if trial.message else "",
    }


def _metric(style: NumberFormat) -> str:
    return style.titled(f"validation {style.metric.name}", style.unit)


def _setting(record: SweepRecord) -> list[tuple[str, str]]:
    limit = f"{record.budget['limit']:g} {record.budget['kind']}"
    held_out = f"{100 * record.validation:g} % of the training part" if record.validation else "a part of the data"
    return [
        ("task", record.task),
        ("model", record.model),
        ("budget", limit),
        ("validation", held_out),
        ("epoch", record.select),
        ("seeds", ", ".join(map(str, record.seeds))),
        ("sampler", record.sampler),
        ("pruner", record.pruner),
        *((f"{p.name} of {each.text.partition(':')[0].partition('@')[0]}", p.text)
          for each in record.contestants for p in each.parameters),
    ]  # fmt: skip
