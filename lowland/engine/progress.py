"""How much of a training is done: counted in steps, or set by the caller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lowland.core import checks
from lowland.core.errors import UsageError
from lowland.executors.mesh import collectives


class Progress:
    """The fraction of a training that is done, in [0, 1].

    Args:
        total: Steps of the whole training, >= 1; None where the caller sets the fraction, or nobody needs it.
        needed_by: The name of the method that needs it; None where the method does not.

    Attributes:
        total: As given.

    Raises:
        ArgumentError: ``total`` is no integer >= 1.
    """

    def __init__(self, total: int | None, needed_by: str | None) -> None:
        if total is not None:
            checks.integer("total_steps", total, 1, "give the calls of engine.backward in the whole training")
        self.total, self._needed_by = total, needed_by
        self._given: float | None = None

    def give(self, value: Any) -> None:
        """The caller says how much is done; that wins over the count of steps from then on.

        Raises:
            ArgumentError: It is no number in [0, 1].
        """
        checks.within("progress", value, 0, 1, "give the fraction of the training that is done, such as step / steps")
        self._given = float(value)

    def at(self, step: int) -> float:
        """The fraction before step ``step``, counted from 0.

        Raises:
            UsageError: Nobody has said it.
        """
        if self._given is not None:
            return self._given
        if self.total is None:
            raise UsageError(
                f"engine.progress must be known, because {self._needed_by or 'the plan'} goes by the fraction of the "
                "training that is done, but neither total_steps nor engine.progress is given; make the engine with "
                "Engine(…, total_steps=10_000), or set engine.progress = 0.37 before each step"
            )
        return min(step / self.total, 1.0)

    def check(self, step: int, first: bool, groups: Sequence[Any], device: Any = None) -> None:
        """Refuse a step whose method needs the fraction and has none, or another one on another rank.

        Ranks are compared in the first step of an engine and in steps 1, 2, 4, 8, …, and only where the caller sets
        the fraction.

        Args:
            step: The step that begins, counted from 0.
            first: Whether it is the engine's first.
            groups: Process groups of all ranks.
            device: Where the model is.

        Raises:
            UsageError: Nobody has said it.
            RankError: It differs; on all ranks.
        """
        if self._needed_by is None:
            return
        now = self.at(step)
        if groups and self._given is not None and (first or step & (step - 1) == 0):
            collectives.agree({"engine.progress": now}, groups, device)
