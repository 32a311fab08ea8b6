"""The methods of the study: what their steps ask for, on groups of devices and on one device."""

from __future__ import annotations

import math
from typing import NamedTuple

from lowland.core.errors import ArgumentError
from lowland.methods import make
from lowland.planner.asks import Step, read
from lowland.planner.costs import REQUIRED

BATCHES = 240, 120  # on which fractions are read; 240 has many divisors
FEW = 6  # steps that are compared
NEAR = 0.01  # fractions of the two batches differ by less, because parts are whole examples


class Contestant(NamedTuple):
    """A method: its text, its groups of devices, and the asks of its steps on these groups and on one device."""

    text: str
    probe: int
    steps: tuple[Step, ...]
    alone: tuple[Step, ...]

    def simulated(self, count: int) -> int:
        """The steps that are simulated: as many as wanted; where they differ, whole repetitions of all of them."""
        every = len(self.steps) if len(set(self.steps)) > 1 else 1
        return math.ceil(count / every) * every


def contestant(text: str) -> Contestant:
    """The method of this text, on two groups of devices if it asks for several passes at once.

    Raises:
        ArgumentError: The method takes a number of examples, and not a fraction of the batch.
    """
    method = make(text, fill=lambda key: REQUIRED.get(key, {}))
    if not _near(*(read(method, examples=size, count=FEW) for size in BATCHES)):
        raise ArgumentError(
            f"methods must ask for fractions of a batch, whose size differs between numbers of devices, but {text} "
            "asks for a number of examples or of parts; give a fraction, such as k-sam:k=0.25, or fewer parts"
        )
    alone = read(method, examples=BATCHES[0])
    probe = 2 if max(len(ask) for step in alone for ask in step) > 1 else 1
    return Contestant(text, probe, read(method, width=probe, examples=BATCHES[0]), alone)


def _near(one: tuple[Step, ...], other: tuple[Step, ...]) -> bool:
    """Whether passes have about the same fractions of a batch."""
    both = [sorted({p.examples for step in steps for ask in step for p in ask}) for steps in (one, other)]
    return all(min(abs(a - b) for b in both[1 - n]) < NEAR for n in (0, 1) for a in both[n])
