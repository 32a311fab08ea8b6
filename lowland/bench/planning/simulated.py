"""The simulator's steps from measured lines, to be held against measured steps."""

from __future__ import annotations

from statistics import mean

from lowland.planner.line import Line
from lowland.planner.links import Link, Network
from lowland.planner.measure import Own, Rates
from lowland.planner.predict import rounds, unsynced
from lowland.planner.setting import Setting
from lowland.planner.simulation.steps import step_times
from lowland.planner.survey import Survey


def seconds(survey: Survey, rates: Rates, own: Own) -> float:
    """The mean simulated step of a method in a layout.

    Args:
        survey: What was measured on this number of ranks.
        rates: The rates of the layout.
        own: The method's own work.
    """
    return float(step_times(own.steps, setting(survey, rates, own), len(own.steps)).mean())


def setting(survey: Survey, rates: Rates, own: Own) -> Setting:
    """A mesh whose numbers were measured by calibrating steps.

    Passes take what they take while all ranks compute. A collective takes what does not hide of it behind the backward
    of a calibrating step with as many examples as the method's passes have on average, so nothing more hides. The
    arithmetic is the method's own work, what ranks compare once a step, and what a step's first exchange between groups
    takes more than the others.
    """
    layout, busy = rates.layout, survey.busy
    n = mean(p.examples for step in own.steps for ask in step for p in ask) * survey.examples / layout.data
    averaged = max(rates.lines["again"](n) - busy.lines["again"](n), 0.0) if layout.data > 1 else 0.0
    lines, shared, first = busy.lines, 0.0, 0.0
    at_the_end = not any(p.synced for step in own.steps for ask in step for p in ask if p.tensors)
    if layout.data > 1 and layout.probe == 1 and at_the_end:
        lines = unsynced(rates, busy, n).lines
        averaged = max(rates.lines["unsynced"](n) - lines["again"](n), 0.0)
    if layout.probe > 1:
        begun, further = rounds(own.steps[-1], rates)
        once, more = (max(rates.lines[kind](n) - lines["displaced"](n), 0.0) for kind in (begun, further))
        if further == "unsynced rounds":  # the average at the end is in the line of the first round
            averaged, shared = max(once - more, 0.0), more
        else:
            shared = max(more - averaged, 0.0)
            first = max(once - averaged - shared, 0.0)
    return Setting(
        gradient=_between(lines["again"], lines["displaced"]),
        forward=busy.lines["forward"],
        size=survey.parameters,
        # An all-reduce of r ranks has 2 (r - 1) messages, an all-gather r - 1; the probe dimension is inside of a host.
        network=Network(
            within=_link(shared, layout.probe - 1) if layout.probe > 1 else _link(averaged, 2 * (layout.data - 1)),
            between=_link(averaged, 2 * (layout.data - 1)),
            host=layout.probe if layout.probe > 1 else layout.data,
        ),
        probe=layout.probe,
        data=layout.data,
        batch=float(survey.examples),
        arithmetic=rates.once + first + mean(own.seconds),
    )


def _between(one: Line, other: Line) -> Line:
    return Line((one.base + other.base) / 2, (one.slope + other.slope) / 2)


def _link(time: float, messages: int) -> Link:
    """A link over which so many messages take this time together."""
    return Link(time / max(messages, 1), float("inf"))
