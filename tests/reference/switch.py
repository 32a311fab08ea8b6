"""Two methods by turns: at some steps the one, at all others the other. Each remembers its own steps only."""

from __future__ import annotations

from collections.abc import Callable

from reference.model import Batch
from reference.plain import Plain
from reference.sam import SAM
from reference.vectors import Weights
from reference.wrapper import Inner, Wrapper


class Switch(Wrapper):
    """At the steps (from 0) where `when` holds the inner direction, else the other one."""

    def setup(self, when: Callable[[int], bool], inner: Inner = (SAM, {}), otherwise: Inner = (Plain, {})) -> None:
        self.when, self.t = when, 0
        self.inner, self.otherwise = self.start(inner), self.start(otherwise)

    def direction(self, batch: Batch) -> tuple[float, Weights]:
        twin = self.inner if self.when(self.t) else self.otherwise
        self.t += 1
        return self.ask(twin, batch)
