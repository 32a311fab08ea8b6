"""The sentences and the table of a plan, which terminal and page share."""

from __future__ import annotations

from math import hypot

from lowland.report.plans.record import PlanRecord, PredictionRecord
from lowland.report.values import NONE

HEADINGS = ("method", "layout", "ms a step", "of plain", "examples/s", "MB sent", "MB memory", "bound by")
UNKNOWN = "?"  # an error or bytes that nothing tells
BOUNDS = {"passes": "passes", "busy": "busy neighbors", "exchange": "exchange", "own": "arithmetic"}
HELP = {
    "layout": "the fastest way to divide a step: probe=2 is two groups of ranks that compute independent gradients, "
    "data=2 is two ranks that share a batch",
    "ms a step": "the mean time of a step, with the standard error of the fitted lines, ? where nothing tells it; "
    "it is predicted, not measured",
    "of plain": "the time of plain training in its own fastest layout is 1",
    "MB sent": "gradients that the first rank sends in a step, ? where it is not modeled",
    "MB memory": "the predicted peak of a rank: weights, optimizer state, activations and what the method keeps, "
    "without the batch; every rank has as much",
    "bound by": "what a step spends most of its time on beside its passes, if it is a tenth of the step or more",
}
UNCOVERED = (
    "Loading data, evaluation and checkpoints are no part of a step.",
    "A pass at displaced weights, a pass of some tensors and a forward pass are timed on one batch; a training whose "
    "passes grow more costly with time is not covered.",
    "Exchanges are measured between ranks of this machine; between machines they take longer.",
    "The error of a time is the scatter of the fitted lines. It leaves out other programs on the machine, and steps "
    "whose parts overlap or hinder each other.",
    "A plan is about cost alone. It does not say which method trains the better model.",
)


def cells(one: PredictionRecord, plain: PredictionRecord | None) -> list[str]:
    """The row of a method in the order of ``HEADINGS``.

    Args:
        one: The fastest prediction of the method.
        plain: The fastest prediction of plain training; None if it was not planned.
    """
    return [
        one.method,
        one.shown,
        f"{one.seconds * 1e3:.2f} ± {UNKNOWN if one.error is None else f'{100 * one.error:.0f} %'}",
        NONE if plain is None else f"{one.seconds / plain.seconds:.2f}",
        f"{one.speed:,.0f}",
        UNKNOWN if one.bytes is None else f"{one.bytes / 1e6:.2f}" if one.bytes else NONE,
        NONE if one.memory is None else f"{one.memory / 1e6:,.1f}",
        BOUNDS.get(one.bound, one.bound),
    ]


def recommendation(plan: PlanRecord) -> list[str]:
    """What to choose, in sentences."""
    fastest = plan.fastest()
    others = [name for name in fastest if name != "plain"]
    shown = [name for name in ("plain", *dict.fromkeys([*others[:1], "sam", "sampa"])) if name in fastest]
    said = [f"{name} is fastest on {plan.why[name]}." for name in shown]
    if "plain" in fastest and others:
        first, second = fastest[others[0]], fastest[others[1]] if len(others) > 1 else None
        if second is not None and None in (first.error, second.error):
            said.append(
                f"Which method has the cheapest step beside plain training is not known: {first.method} is predicted "
                f"to have it, and {second.method} the next, but nothing tells the error of these times."
            )
        else:
            said.append(f"Beside plain training, {others[0]} has the cheapest step.")
        if second is not None and _alike(first, second):
            said.append(f"The next, {second.method}, differs by less than the error of the two predictions.")
    return said


def _alike(one: PredictionRecord, other: PredictionRecord) -> bool:
    """Whether two times differ by less than the standard error of their difference, as far as it is known."""
    if one.error is None or other.error is None:
        return False
    return abs(one.seconds - other.seconds) < hypot(one.error * one.seconds, other.error * other.seconds)


def batch(plan: PlanRecord) -> int:
    """The examples of a step."""
    return plan.surveys[0].examples


def setting(plan: PlanRecord) -> list[tuple[str, str]]:
    """What was planned, by heading."""
    ranks = [str(each.ranks) for each in plan.surveys]
    machine = [f"{name} {value}" if name in ("torch", "lowland", "python") else str(value)
               for name, value in plan.machine.items() if name != "threads"]  # fmt: skip
    return [
        ("task", plan.task),
        ("model", f"{plan.model}, {plan.surveys[0].parameters / 1e6:,.2f} MB of parameters"),
        ("batch", f"{batch(plan)} examples a step, of all processes together"),
        ("processes", ", ".join(ranks)),
        ("measured for", f"about {plan.seconds:g} seconds"),
        (
            "memory free",
            NONE if plan.room is None else f"{plan.room / 1e9:,.1f} GB, which the processes of a machine share",
        ),
        ("machine", ", ".join(machine)),
    ]
