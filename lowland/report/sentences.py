"""The sentences that may honestly be said about a comparison, computed from its rows and runs."""

from __future__ import annotations

from collections.abc import Sequence

from lowland.report.records import RunRecord
from lowland.report.summary import Row, chosen, summarize

RIPE = 8  # epochs: that of lab/defaults.py, which needs torch


def verdict(rows: Sequence[Row]) -> str:
    """The outcome in one sentence: who beats the baseline beyond the interval, and who does not."""
    base, rivals = _sides(rows)
    if not any(row.accuracy for row in rows):
        return "No run has finished yet."
    if base is None or base.accuracy is None:
        return f"{_leader(rows)}; without a finished baseline no difference can be judged."
    if not rivals:
        return f"{base.label} stands alone at {percent(base.accuracy.mean)} %: nothing to compare."
    if all(row.difference and row.difference.half is None for row in rivals):
        return f"{_leader(rows)}, but one seed decides nothing: take several to see more than chance."
    better, worse, still = ([row.label for row in rivals if row.effect == e] for e in ("better", "worse", "open"))
    if not better and not worse:
        return f"No method can be told apart from {base.label} over these seeds."
    parts = [f"{listed(better)} beat{'s' * (len(better) == 1)} {base.label}"] if better else []
    if worse:
        parts.append(f"{listed(worse)} fall{'s' * (len(worse) == 1)} behind {base.label}")
    if still:
        parts.append(f"{listed(still)} cannot be told apart from it")
    return "; ".join(parts) + "."


def statement(rows: Sequence[Row]) -> str:
    """Which methods beat the baseline beyond their interval, which do not, and what each costs per step.

    Empty where no interval exists.
    """
    base, rivals = _sides(rows)
    if base is None or not any(row.difference and row.difference.half is not None for row in rivals):
        return ""
    told: dict[str, str] = {
        "better": f"Better than {base.label} beyond the 95 % interval",
        "worse": f"Worse than {base.label} beyond it",
        "open": "Open",
    }
    parts = []
    for kind, heading in told.items():
        named = [f"{row.label} ({_price(row)})" for row in rivals if row.effect == kind]
        if named or kind == "better":
            parts.append(f"{heading}: {listed(named) or 'none'}.")
    return " ".join(parts)


def notes(records: Sequence[RunRecord]) -> list[str]:
    """What a reader must know before trusting the table of these records."""
    runs, found = chosen(records), []
    unfinished = [f"{r.method.text} seed {r.seed}" for r in runs if not r.finished]
    if unfinished:
        found.append(f"Unfinished and not counted: {', '.join(unfinished)}.")
    if len(runs) < len(records):
        found.append(f"{len(records) - len(runs)} of {len(records)} runs repeat a method and seed; the latest counts.")
    finished = [r for r in runs if r.finished]
    found += _uneven(finished) + _uncounted(finished) + _short(finished)
    if len({tuple(sorted(map(str, r.machine.items()))) for r in finished}) > 1:
        found.append("The runs come from different machines or settings: their times do not compare.")
    if len({r.versions.get("torch") for r in finished}) > 1:
        found.append("The runs were made with different versions of torch.")
    if len({tuple(row.seeds) for row in summarize(runs) if row.seeds}) > 1:
        found.append("Not every method has the same seeds; differences are taken over the common ones.")
    return found


def _uneven(finished: Sequence[RunRecord]) -> list[str]:
    """In what the recipes differ, and whose is not that of most runs."""
    recipes = [r.recipe for r in finished]
    usual = max(recipes, key=recipes.count, default={})
    fields = sorted({k for recipe in recipes for k in recipe if recipe[k] != usual.get(k)})
    others = sorted({r.method.text for r in finished if r.recipe != usual})
    return [f"The recipes of these runs differ in {listed(fields)}: {listed(others)} has its own."] if fields else []


def _short(finished: Sequence[RunRecord]) -> list[str]:
    """That recipes hold methods back in short trainings."""
    lengths = [r.end.epochs for r in finished if r.end is not None and r.method.key != "plain"]
    if not lengths or min(lengths) >= RIPE:
        return []
    return [
        f"Trainings of less than {RIPE} epochs are short: there the recipes make methods weaker, with the cube of "
        "the length, in the radius and in other fields, as far as you give none."
    ]


def _uncounted(finished: Sequence[RunRecord]) -> list[str]:
    """What gradients per step do not tell: forward passes, and gradients for some of the tensors."""
    found = []
    for text in dict.fromkeys(r.method.text for r in finished):
        end = next(r.end for r in finished if r.method.text == text)
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


def percent(fraction: float, *, sign: bool = False) -> str:
    """A fraction in percent, two decimals, with a true minus sign."""
    return f"{100 * fraction:{'+' if sign else ''}.2f}".replace("-", "−")


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def _sides(rows: Sequence[Row]) -> tuple[Row | None, list[Row]]:
    base = next((row for row in rows if row.baseline), None)
    return base, [row for row in rows if row.difference is not None]


def _leader(rows: Sequence[Row]) -> str:
    mean, label = max((row.accuracy.mean, row.label) for row in rows if row.accuracy)
    return f"{label} is highest with {percent(mean)} %"


def _price(row: Row) -> str:
    gradients = "" if row.gradients is None else f"{row.gradients:.2f} gradients"
    time = "" if row.time is None else f"{row.time:.2f}\u00a0× the time"
    return ", ".join(part for part in (gradients, time) if part) or "cost unknown"
