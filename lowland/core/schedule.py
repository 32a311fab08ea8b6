"""What changes during training, as values.

Radii: ``SAM(rho=cosine(0.05, 0.2, steps=10_000))``. Steps at which a method works: ``Switch(when=every(5))``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from lowland.core import checks
from lowland.core.errors import ArgumentError


@dataclass(frozen=True)
class Schedule(ABC):
    """A number that depends on the step and on the learning rate."""

    @abstractmethod
    def at(self, step: int, lr: float | Tensor) -> float:
        """The value before step ``step`` (counted from 0), at learning rate ``lr``."""


@dataclass(frozen=True)
class Constant(Schedule):
    """See :func:`constant`."""

    value: float

    def at(self, step: int, lr: float | Tensor) -> float:
        """See :meth:`Schedule.at`."""
        return self.value


@dataclass(frozen=True)
class Linear(Schedule):
    """See :func:`linear`."""

    start: float
    end: float
    steps: int

    def at(self, step: int, lr: float | Tensor) -> float:
        """See :meth:`Schedule.at`."""
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


@dataclass(frozen=True)
class Cosine(Schedule):
    """See :func:`cosine`."""

    start: float
    end: float
    steps: int

    def at(self, step: int, lr: float | Tensor) -> float:
        """See :meth:`Schedule.at`."""
        turn = (1 - math.cos(math.pi * min(step / self.steps, 1.0))) / 2
        return self.start + (self.end - self.start) * turn


@dataclass(frozen=True)
class FollowLR(Schedule):
    """See :func:`follow_lr`."""

    high: float
    low: float
    lr_high: float
    lr_low: float

    def at(self, step: int, lr: float | Tensor) -> float:
        """See :meth:`Schedule.at`."""
        if isinstance(lr, Tensor):
            raise ArgumentError(
                "lr must be a number where rho follows it, but is a tensor, which the host would wait for; set "
                'param_groups[0]["lr"] to a float, or use linear() or cosine()'
            )
        share = (lr - self.lr_low) / (self.lr_high - self.lr_low)
        return self.low + (self.high - self.low) * min(max(share, 0.0), 1.0)


def constant(value: float) -> Constant:
    """The same radius throughout.

    Example:
        >>> constant(0.05).at(step=7, lr=0.1)
        0.05
    """
    checks.at_least("value", value, 0, "a radius of 0 switches the perturbation off")
    return Constant(value)


def linear(start: float, end: float, steps: int) -> Linear:
    """From ``start`` to ``end`` in a straight line over ``steps`` steps, then ``end``.

    Example:
        >>> linear(0.0, 0.1, steps=10).at(step=5, lr=0.1)
        0.05
    """
    _check_ramp(start, end, steps)
    return Linear(start, end, steps)


def cosine(start: float, end: float, steps: int) -> Cosine:
    """From ``start`` to ``end`` along half a cosine over ``steps`` steps, then ``end``.

    Example:
        >>> round(cosine(0.0, 0.1, steps=10).at(step=5, lr=0.1), 12)
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
    """Some of the steps of a training."""

    @abstractmethod
    def holds(self, step: int) -> bool:
        """Whether step ``step`` (counted from 0) is one of them."""


@dataclass(frozen=True)
class Every(When):
    """See :func:`every`."""

    k: int
    offset: int = 0

    def holds(self, step: int) -> bool:
        """See :meth:`When.holds`."""
        return step % self.k == self.offset


@dataclass(frozen=True)
class After(When):
    """See :func:`after`."""

    start: float
    total: int | None = None

    def holds(self, step: int) -> bool:
        """See :meth:`When.holds`."""
        # 0.07 * 100 is 7.000000000000001.
        return step >= (self.start if self.total is None else self.start * self.total - 1e-9)


def every(k: int, offset: int = 0) -> Every:
    """Every k-th step: 0, k, 2k, ..., each ``offset`` later.

    Example:
        >>> [step for step in range(10) if every(4, offset=1).holds(step)]
        [1, 5, 9]
    """
    checks.whole("k", k, 1, "k=1 is every step")
    checks.whole("offset", offset, 0, "0 begins with the first step")
    if offset >= k:
        raise ArgumentError(f"offset must be < k = {k}, but is {offset}; 0 begins with the first step")
    return Every(k, offset)


def after(start: float, total: int | None = None) -> After:
    """From a step on.

    Args:
        start: An integer is a step, counted from 0; a number in (0, 1) is a fraction of ``total``.
        total: Steps of the whole training, >= 1; only for a fraction.

    Example:
        >>> [step for step in range(10) if after(0.75, total=10).holds(step)]
        [8, 9]
    """
    if isinstance(start, float) and 0 < start < 1:
        checks.whole("total", total, 1, "a start in (0, 1) is a fraction of the training's steps; give their number")
        return After(start, total)
    checks.whole("start", start, 0, "give a step, or a fraction in (0, 1) together with total")
    return After(start)


def _check_ramp(start: float, end: float, steps: int) -> None:
    checks.at_least("start", start, 0, "a radius of 0 switches the perturbation off")
    checks.at_least("end", end, 0, "a radius of 0 switches the perturbation off")
    checks.whole("steps", steps, 1, "give the length of the ramp in steps")
