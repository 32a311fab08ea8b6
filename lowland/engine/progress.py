"""The completed fraction of a training: counted in steps, or set by the caller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lowland.core import checks
from lowland.core.errors import UsageError
from lowland.executors.mesh import collectives


class Progress:
    """The completed fraction of a training, in [0, 1].

    Args:
        total: The number of steps of the training, >= 1; None if the caller sets the fraction, or it is not needed.
        needed_by: The name of the method that needs the fraction; None if the method does not need it.

    Attributes:
        total: The number of steps of the training, or None.

    Raises:
        ArgumentError: ``total`` is not an integer >= 1.
    """

    def __init__(self, total: int | None, needed_by: str | None) -> None:
        if total is not None:
            checks.integer("total_steps", total, 1, "give the calls of engine.backward in the whole training")
        self.total, self._needed_by = total, needed_by
        self._set: float | None = None  # the fraction that the caller has set

    def set(self, value: Any) -> None:
        """Set the fraction; from now on it replaces the count of steps.

        Raises:
            ArgumentError: It is not a number in [0, 1].
        """
        checks.within("progress", value, 0, 1, "give the fraction of the training that is done, such as step / steps")
        self._set = float(value)

    def at(self, step: int) -> float:
        """The fraction before step ``step``, counted from 0.

        Raises:
            UsageError: There is neither a number of steps nor a fraction.
        """
        if self._set is not None:
            return self._set
        if self.total is None:
            raise UsageError(
                f"engine.progress must be known, because {self._needed_by or 'the plan'} goes by the fraction of the "
                "training that is done, but neither total_steps nor engine.progress is given; make the engine with "
                "Engine(…, total_steps=10_000), or set engine.progress = 0.37 before each step"
            )
        return min(step / self.total, 1.0)

    def check(self, step: int, first: bool, groups: Sequence[Any], device: Any = None) -> None:
        """Refuse a step if the method needs the fraction and it is unknown, or if it differs between ranks.

        Ranks are compared in the first step of an engine and in steps 1, 2, 4, 8, …, and only if the caller sets the
        fraction.

        Args:
            step: The step that begins, counted from 0.
            first: Whether it is the first step of the engine.
            groups: The process groups whose ranks are compared.
            device: The model's device.

        Raises:
            UsageError: The fraction is unknown.
            RankError: The fraction differs between ranks; raised on all ranks.
        """
        if self._needed_by is None:
            return
        now = self.at(step)
        if groups and self._set is not None and (first or step & (step - 1) == 0):
            collectives.agree({"engine.progress": now}, groups, device)
