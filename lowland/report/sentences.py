"""The sentences that may honestly be said about a comparison, computed from its rows and runs."""

from __future__ import annotations

from collections.abc import Sequence

from lowland.report.summary import RIPE, Row, chosen, summarize, too_short
from lowland.runs.record import RunRecord


def verdict(rows: Sequence[Row]) -> str:
    """The outcome in one sentence: what diverged, who beats the baseline, and who does not."""
    base, rivals = _sides(rows)
    lost = diverged(rows)
    if lost and all(row.diverged for row in rows):
        return f"{lost} Nothing can be compared; a lower learning rate is the first thing to try."
    if base is not None and base.diverged:
        return f"{lost} Nothing can be said of the others without a baseline."
    if lost:
        return f"{lost} {_verdict(rows, base, rivals)}" if rivals else lost
    return _verdict(rows, base, rivals)


def diverged(rows: Sequence[Row]) -> str:
    """Which trainings broke down, in a sentence; empty where none did."""
    parts = [f"{row.label} diverged in {len(row.diverged)} of {len(row.seeds)} seeds" for row in rows if row.diverged]
    return f"{listed(parts)}." if parts else ""


def _verdict(rows: Sequence[Row], base: Row | None, rivals: Sequence[Row]) -> str:
    if not any(row.accuracy for row in rows):
        return "No run has finished yet."
    if rivals and (epochs := too_short(rows)) is not None:
        return (
            f"A training of {epochs} epoch{'s' * (epochs != 1)} is too short to compare methods: far from any minimum "
            f"a perturbation only slows it down. Take {RIPE} epochs or more."
        )
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
    """Which methods beat the baseline, which do not, by what rule, and what each costs per step.

    Empty where no interval exists.
    """
    base, rivals = _sides(rows)
    if base is None or not any(row.difference and row.difference.half is not None for row in rivals) or too_short(rows):
        return ""
    told: dict[str, str] = {
        "better": f"Better than {base.label} (p < 0.05{_correction(rivals)})",
        "worse": f"Worse than {base.label}",
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
    found += _uneven(finished) + _uncounted(finished)
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


def _correction(rivals: Sequence[Row]) -> str:
    tested = sum(row.p is not None for row in rivals)
    return f", corrected for {tested} comparisons" if tested > 1 else ""


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
