"""The passes of a method's steps, read off its plan while it runs."""

from __future__ import annotations

from functools import cache

from lowland.planner.asks import Pass, Step, read
from lowland.planner.costs import STEPS, specimen

SHOWN = 10  # the number of steps in a figure
FORWARD = 1 / 3  # of a gradient: backward takes about twice as long as forward


def span(one: Pass) -> float:
    """The length of a pass in gradients of the full batch."""
    return one.examples * (1.0 if one.tensors else FORWARD)


def length(step: Step) -> float:
    """The length of a step in gradients, if independent passes run at the same time."""
    return sum(max(map(span, together)) for together in step)


@cache
def trace(key: str) -> list[Step]:
    """All steps of a method in the tiny training that measures its cost."""
    return list(read(specimen(key)))


def steps_of(key: str) -> tuple[int, list[Step]]:
    """Ten consecutive steps of that training.

    They have as many different costs as any ten steps have; among those, their cost is closest to the average.

    Returns:
        The number of the first step, counted from 1, and the steps.
    """
    steps = trace(key)
    prices = [sum(span(p) for together in step for p in together) for step in steps]
    average = sum(prices) / len(prices) * SHOWN

    def unlike(first: int) -> tuple[int, float]:
        shown = prices[first : first + SHOWN]
        return -len({round(price, 6) for price in shown}), round(abs(sum(shown) - average), 6)

    first = min(range(STEPS - SHOWN + 1), key=unlike)
    return first + 1, steps[first : first + SHOWN]
