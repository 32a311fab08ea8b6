"""The steps of a whole training without their passes: what they ask for on the planned model, and which are timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lowland.methods.base import Method
from lowland.planner.asks import Step, read, shape, size
from lowland.planner.calibration import record
from lowland.planner.canned import Canned, Recorded
from lowland.planner.costs import STEPS, placed
from lowland.planner.layout import Layout
from lowland.planner.subject import Subject, train_step
from lowland.planner.turns import Turn

ALIKE = 6  # steps that are looked at of a method whose steps are alike in the tiny training
MOST = 64  # examples of a step of the tiny training; no mesh has more groups
AGAIN = 20  # a kind of step that comes again within so many steps is looked at twice


@dataclass
class Rehearsal:
    """An engine whose steps have no passes.

    Args:
        subject: The training.
        method: The method.
        width: How many probes the plan is told are answered at once.
        recorded: Answers of passes.
        examples: The examples of a step; None are those of the batch.

    Attributes:
        canned: The executor, which has written down the asks of all steps so far.
        whole: The asks of steps that are spread over the whole training, after :meth:`run`; none if steps are alike.
    """

    subject: Subject
    method: Method
    width: int
    recorded: Sequence[Recorded]
    examples: int | None = None
    whole: tuple[Step, ...] = ()
    _order: list[int] = field(default_factory=list)
    _next: int = 0

    def __post_init__(self) -> None:
        self.canned = Canned(self.recorded, self.width, self.subject.batches)
        self.engine, self.optimizers = self.subject.engine(self.method, Layout(), alone=True, executor=self.canned)
        self.batch = self.subject.batch if self.examples is None else self.subject.part(self.examples)

    def step(self, number: int | None = None) -> None:
        """Take a step; with a number it is that one of :data:`lowland.planner.costs.STEPS`."""
        if number is not None:
            self.engine.step = placed(number, self.subject.total)
        train_step(self.engine, self.optimizers, self.batch)

    def run(self, alike: int = ALIKE) -> tuple[Step, ...]:
        """Take steps that are spread over the training, all of them if the method's steps differ.

        Args:
            alike: The steps that are taken if they do not.

        Raises:
            LowlandError: The method refuses a step.
        """
        differ = varies(self.subject, self.method, self.width)
        for number in range(STEPS if differ else alike):
            self.step(number)
        steps = tuple(self.canned.steps)
        if differ:
            watched = [number for number in range(STEPS) if _watched(placed(number, self.subject.total))]
            self.whole, self._order = steps, in_turns([shape(step) for step in steps], watched)
        return steps

    def turn(self) -> Turn:
        """The turn that times a step; the kinds of steps take turns, as far as their place in the training decides."""

        def prepare() -> None:
            if self._order:  # steps that are alike go on, and draw what a training draws
                self.engine.step = placed(self._order[self._next % len(self._order)], self.subject.total)
                self._next += 1
            self.canned.stock()

        return Turn(self.step, prepare)


def _watched(step: int) -> bool:
    """Whether the engine watches a step, which then takes longer."""
    return step & (step - 1) == 0


def in_turns(kinds: Sequence[Any], avoided: Sequence[int] = ()) -> list[int]:
    """The places of a sequence in an order in which its kinds take turns, again and again where one has fewer.

    Args:
        kinds: The sequence.
        avoided: Places that stand for their kind only if it has no other.

    Example:
        >>> in_turns(["a", "a", "a", "b"])
        [0, 3, 1, 3, 2, 3]
    """
    places: Mapping[Any, list[int]] = {kind: [i for i, k in enumerate(kinds) if k == kind] for kind in kinds}
    kept = [[place for place in own if place not in avoided] or own for own in places.values()]
    return [own[turn % len(own)] for turn in range(max(map(len, kept))) for own in kept]


def asks(subject: Subject, method: Method, width: int) -> tuple[Step, ...] | None:
    """The asks of the tiny training; None for a method that does not run on its model, as users' own may not."""
    try:
        return read(method, width=width, total=subject.total, examples=min(subject.size or 1, MOST))
    except Exception:  # it may know the names or the batches of the user's model
        return None


def asks_on(subject: Subject, method: Method, width: int) -> tuple[Step, ...]:
    """The asks of a method: of the tiny training, or on the planned model if it does not run there."""
    known = asks(subject, method, width)
    return Rehearsal(subject, method, width, record(subject)).run() if known is None else known


def varies(subject: Subject, method: Method, width: int) -> bool:
    """Whether the steps of a method differ, or may do so; a first one that takes no more passes does not count."""
    known = asks(subject, method, width)
    if known is None:
        return True
    first, *later = map(shape, known)
    return len(set(later)) > 1 or size(first) > size(later[0])


def enough(subject: Subject, method: Method, width: int) -> int:
    """So many steps from the first on have every kind of step, and those that come again soon twice."""
    known = asks(subject, method, width)
    if known is None:
        return AGAIN
    shapes = [shape(step) for step in known]
    last = 0
    for kind in set(shapes):
        first, *later = [i for i, each in enumerate(shapes) if each == kind][:2]
        last = max(last, *(i for i in later if i < AGAIN), first)
    return max(last + 1, ALIKE)
