"""What changes during training, as values.

Radii: ``SAM(rho=cosine(0.05, 0.2))``. Steps at which a method works: ``Switch(when=every(5))``. Lengths are numbers of
steps, which are integers, or fractions of the training, for which an engine needs ``total_steps`` or ``progress``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from lowland.core import checks
from lowland.core.errors import ArgumentError, UsageError


@dataclass(frozen=True)
class Schedule(ABC):
    """A number that depends on the step, on the learning rate, or on how much of the training is done."""

    @property
    def needs_progress(self) -> bool:
        """Whether it goes by the fraction of the training that is done; :meth:`at` then gets it."""
        return False

    @abstractmethod
    def at(self, step: int, lr: float | Tensor, progress: float | None = None) -> float:
        """The value before a step.

        Args:
            step: The step, counted from 0.
            lr: The learning rate.
            progress: The fraction of the training that is done, in [0, 1]; given where it is needed.
        """


@dataclass(frozen=True)
class Constant(Schedule):
    """See :func:`constant`."""

    value: float

    def at(self, step: int, lr: float | Tensor, progress: float | None = None) -> float:
        """See :meth:`Schedule.at`."""
        return self.value


@dataclass(frozen=True)
class _Ramp(Schedule):
    """From one value to another."""

    start: float
    end: float
    steps: int | float | None = None

    @property
    def needs_progress(self) -> bool:
        """See :meth:`Schedule.needs_progress`."""
        return not isinstance(self.steps, int)

    def fraction(self, step: int, progress: float | None) -> float:
        """The completed fraction of the ramp, in [0, 1]."""
        if isinstance(self.steps, int):
            return min(step / self.steps, 1.0)
        return min(_known(progress) / (1.0 if self.steps is None else self.steps), 1.0)


@dataclass(frozen=True)
class Linear(_Ramp):
    """See :func:`linear`."""

    def at(self, step: int, lr: float | Tensor, progress: float | None = None) -> float:
        """See :meth:`Schedule.at`."""
        return self.start + (self.end - self.start) * self.fraction(step, progress)


@dataclass(frozen=True)
class Cosine(_Ramp):
    """See :func:`cosine`."""

    def at(self, step: int, lr: float | Tensor, progress: float | None = None) -> float:
        """See :meth:`Schedule.at`."""
        weight = (1 - math.cos(math.pi * self.fraction(step, progress))) / 2
        return self.start + (self.end - self.start) * weight


@dataclass(frozen=True)
class FollowLR(Schedule):
    """See :func:`follow_lr`."""

    high: float
    low: float
    lr_high: float
    lr_low: float

    def at(self, step: int, lr: float | Tensor, progress: float | None = None) -> float:
        """See :meth:`Schedule.at`."""
        if isinstance(lr, Tensor):
            raise ArgumentError(
                "lr must be a number where rho follows it, but is a tensor, which the host would wait for; set "
                'param_groups[0]["lr"] to a float, or use linear() or cosine()'
            )
        fraction = (lr - self.lr_low) / (self.lr_high - self.lr_low)
        return self.low + (self.high - self.low) * min(max(fraction, 0.0), 1.0)


def constant(value: float) -> Constant:
    """The same radius throughout.

    Example:
        >>> constant(0.05).at(step=7, lr=0.1)
        0.05
    """
    checks.at_least("value", value, 0, "a radius of 0 switches the perturbation off")
    return Constant(value)


def linear(start: float, end: float, steps: int | float | None = None) -> Linear:
    """From ``start`` to ``end`` in a straight line, then ``end``.

    Args:
        start: The first radius, >= 0.
        end: The last one, >= 0.
        steps: Length of the line: an integer >= 1 is a number of steps, a number in (0, 1) a fraction of the training,
            None all of it.

    Example:
        >>> linear(0.0, 0.1, steps=10).at(step=5, lr=0.1)
        0.05
        >>> linear(0.0, 0.1).at(step=5, lr=0.1, progress=0.25)
        0.025
    """
    _check_ramp(start, end, steps)
    return Linear(start, end, steps)


def cosine(start: float, end: float, steps: int | float | None = None) -> Cosine:
    """From ``start`` to ``end`` along half a cosine, then ``end``.

    Args:
        start: The first radius, >= 0.
        end: The last one, >= 0.
        steps: Length of the ramp, as in :func:`linear`.

    Example:
        >>> round(cosine(0.0, 0.1, steps=10).at(step=5, lr=0.1), 12)
        0.05
        >>> round(cosine(0.0, 0.1, steps=0.5).at(step=5, lr=0.1, progress=0.25), 12)
        0.05
    """
    _check_ramp(start, end, steps)
    return Cosine(start, end, steps)


def follow_lr(high: float, low: float, *, lr_high: float, lr_low: float = 0.0) -> FollowLR:
    """A radius that is linear in the learning rate: ``high`` at ``lr_high``, ``low`` at ``lr_low``.

    Differs: Above ``lr_high`` it stays ``high``, below ``lr_low`` it stays ``low``; GSAM's releases extrapolate.

    Reference: Zhuang et al.: Surrogate Gap Minimization Improves Sharpness-Aware Training (GSAM).
    ICLR 2022, arXiv 2203.08065.

    Example:
        >>> follow_lr(0.2, 0.0, lr_high=0.1).at(step=0, lr=0.05)
        0.1
    """
    checks.at_least("high", high, 0, "a radius of 0 switches the perturbation off")
    checks.at_least("low", low, 0, "a radius of 0 switches the perturbation off")
    checks.at_least("lr_low", lr_low, 0, "give the smallest learning rate of the schedule")
    if not lr_low < lr_high < math.inf:
        raise ArgumentError(
            f"lr_high must be > lr_low = {lr_low}, but is {lr_high}; give the largest learning rate of the schedule"
        )
    return FollowLR(high, low, lr_high, lr_low)


@dataclass(frozen=True)
class When(ABC):
    """A condition that selects steps of a training."""

    @property
    def needs_progress(self) -> bool:
        """Whether :meth:`holds` needs the completed fraction of the training."""
        return False

    @abstractmethod
    def holds(self, step: int, progress: float | None = None) -> bool:
        """Whether the condition selects a step.

        Args:
            step: The step, counted from 0.
            progress: The completed fraction of the training before the step, in [0, 1]; None if it is not needed.
        """


@dataclass(frozen=True)
class Every(When):
    """See :func:`every`."""

    k: int
    offset: int = 0

    def holds(self, step: int, progress: float | None = None) -> bool:
        """See :meth:`When.holds`."""
        return step % self.k == self.offset


@dataclass(frozen=True)
class After(When):
    """See :func:`after`."""

    start: float
    total: int | None = None

    @property
    def needs_progress(self) -> bool:
        """See :meth:`When.needs_progress`."""
        return isinstance(self.start, float) and self.total is None

    def holds(self, step: int, progress: float | None = None) -> bool:
        """See :meth:`When.holds`."""
        if self.needs_progress:
            return _known(progress) >= self.start - 1e-12  # 0.1 + 0.2 is more than 3 / 10
        # 0.07 * 100 is 7.000000000000001.
        return step >= (self.start if self.total is None else self.start * self.total - 1e-9)


def every(k: int, offset: int = 0) -> Every:
    """Every k-th step: ``offset``, k + ``offset``, 2k + ``offset``, ...

    Example:
        >>> [step for step in range(10) if every(4, offset=1).holds(step)]
        [1, 5, 9]
    """
    checks.integer("k", k, 1, "k=1 is every step")
    checks.integer("offset", offset, 0, "0 begins with the first step")
    if offset >= k:
        raise ArgumentError(f"offset must be < k = {k}, but is {offset}; 0 begins with the first step")
    return Every(k, offset)


def after(start: float, total: int | None = None) -> After:
    """All steps from ``start`` on.

    Args:
        start: An integer is a step, counted from 0; a number in (0, 1) is a fraction of the training.
        total: The number of steps of the training, >= 1, if ``start`` is a fraction of it; None uses the engine's
            progress.

    Example:
        >>> [step for step in range(10) if after(0.75, total=10).holds(step)]
        [8, 9]
        >>> after(0.75).holds(step=5, progress=0.8)
        True
    """
    checks.phase("start", start, 0, "0.9 is the last tenth")
    if isinstance(start, int):
        return After(start)
    if total is not None:
        checks.integer("total", total, 1, "give the steps of the whole training, or None for the engine's progress")
    return After(start, total)


def _check_ramp(start: float, end: float, steps: int | float | None) -> None:
    checks.at_least("start", start, 0, "a radius of 0 switches the perturbation off")
    checks.at_least("end", end, 0, "a radius of 0 switches the perturbation off")
    if steps is not None:
        checks.phase("steps", steps, 1, "give the length of the ramp, or None for the whole training")


def _known(progress: float | None) -> float:
    if progress is None:
        raise UsageError(
            "progress must be given for a fraction of the training, but is None; make the engine with "
            "Engine(…, total_steps=10_000), or set engine.progress = 0.37 before each step"
        )
    return progress
