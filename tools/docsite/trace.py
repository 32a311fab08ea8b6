"""The passes of a method's steps, read off its plan while it runs."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from lowland import Probe
from lowland.executors import Local
from lowland.executors.base import Work
from lowland.lab.training.costs import BATCH, STEPS, run_specimen, specimen

SHOWN = 10  # the number of steps in a figure
FORWARD = 1 / 3  # of a gradient: backward takes about twice as long as forward


class Pass(NamedTuple):
    """A pass of a step.

    Args:
        examples: The fraction of the batch.
        tensors: The fraction of the parameter tensors that are differentiated; 0 for a forward pass.
        displaced: Whether the weights are displaced.
    """

    examples: float
    tensors: float
    displaced: bool

    @property
    def length(self) -> float:
        """The length in gradients of the full batch."""
        return self.examples * (1.0 if self.tensors else FORWARD)


Step = list[tuple[Pass, ...]]  # passes in one tuple do not depend on each other


class Traced(Local):
    """Answers probes one after the other, and writes down what they ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []

    def begin(self, batch: Any) -> None:
        """Begin a step."""
        self.steps.append([])
        super().begin(batch)

    def run(self, work: Work, probes: tuple[Probe, ...]) -> Any:
        """Write down the probes, and answer them."""
        self.steps[-1].append(tuple(_pass(work, probe) for probe in probes))
        return super().run(work, probes)


def _pass(work: Work, probe: Probe) -> Pass:
    examples = (work.batches.known_size(probe.batch) or BATCH) / BATCH
    covered = 1.0 if probe.wrt is None else sum(probe.wrt) / len(probe.wrt)
    return Pass(examples, covered if probe.grad else 0.0, probe.at is not None)


def length(step: Step) -> float:
    """The length of a step in gradients, if independent passes run at the same time."""
    return sum(max(p.length for p in together) for together in step)


@cache
def trace(key: str) -> list[Step]:
    """All steps of a method in the tiny training that measures its cost."""
    traced = Traced()
    run_specimen(specimen(key), STEPS, executor=traced)
    return traced.steps


def steps_of(key: str) -> tuple[int, list[Step]]:
    """Ten consecutive steps of that training.

    They have as many different costs as any ten steps have; among those, their cost is closest to the average.

    Returns:
        The number of the first step, counted from 1, and the steps.
    """
    steps = trace(key)
    prices = [sum(p.length for together in step for p in together) for step in steps]
    average = sum(prices) / len(prices) * SHOWN

    def unlike(first: int) -> tuple[int, float]:
        shown = prices[first : first + SHOWN]
        return -len({round(price, 6) for price in shown}), round(abs(sum(shown) - average), 6)

    first = min(range(STEPS - SHOWN + 1), key=unlike)
    return first + 1, steps[first : first + SHOWN]
