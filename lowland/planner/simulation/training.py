"""A whole training with failures: lost work, restarts and checkpoints, as events.

A training in which all devices wait for each other stops when one device fails. It starts again from its last
checkpoint. Each device fails at random, with the same rate at any time, so of n devices one fails every ``mtbf / n``
seconds on average.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, NamedTuple

from lowland.core import checks
from lowland.core.errors import ArgumentError, MissingExtraError
from lowland.planner.simulation.noise import Array

try:
    import numpy as np
    import simpy
except ImportError:
    raise MissingExtraError("simpy", "lab") from None

MANY = 1000  # steps whose sum is drawn by the central limit theorem
MOST = 3.0  # mean times between failures that a part of a training may take; it is then repeated e^3 times


@dataclass(frozen=True, kw_only=True)
class Failures:
    """Failures and checkpoints.

    Args:
        mtbf: Mean seconds between two failures of one device, > 0; infinity for none.
        interval: Seconds of training between two checkpoints, > 0; infinity for none.
        checkpoint: Seconds that training waits while a checkpoint is written, >= 0.
        restart: Seconds from a failure until training goes on, >= 0.

    Raises:
        ArgumentError: An argument breaks its rule.
    """

    mtbf: float = math.inf
    interval: float = math.inf
    checkpoint: float = 0.0
    restart: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mtbf", "interval"):
            value = getattr(self, name)
            if not value > 0:
                raise ArgumentError(f"{name} must be > 0, but is {value!r}; give seconds, or infinity for none")
        checks.at_least("checkpoint", self.checkpoint, 0, "0 writes it in no time")
        checks.at_least("restart", self.restart, 0, "0 goes on at once")

    def between(self, devices: int) -> float:
        """Mean seconds between two failures of any of so many devices."""
        return self.mtbf / devices

    def first_order(self, devices: int) -> float:
        """Seconds for each second of training without failures and checkpoints, to first order in ``1 / between``.

        ::

            1 + checkpoint / interval + (interval / 2 + restart) / between

        On average half an interval is lost by a failure (Young, "A first order approximation to the optimum checkpoint
        interval", Communications of the ACM 17, 1974). It holds if interval, checkpoint and restart are short beside
        the time between failures.
        """
        return 1 + self.checkpoint / self.interval + (self.interval / 2 + self.restart) / self.between(devices)

    def expected(self, devices: int) -> float:
        """The same without an approximation, also for failures while a checkpoint is written and during a restart.

        ::

            between e^(restart / between) (e^((interval + checkpoint) / between) - 1) / interval

        It is the complete model of Daly, "A higher order estimate of the optimum checkpoint interval for restart
        dumps", Future Generation Computer Systems 22, 2006.
        """
        between = self.between(devices)
        if math.isinf(between):
            return 1 + self.checkpoint / self.interval
        return (
            between
            * math.exp(self.restart / between)
            * math.expm1((self.interval + self.checkpoint) / between)
            / (self.interval)
        )

    def best_interval(self, devices: int) -> float:
        """The interval that minimizes :meth:`first_order`: ``sqrt(2 checkpoint between)``."""
        if math.isinf(self.mtbf):
            return math.inf  # and not nan where a checkpoint takes no time
        return math.sqrt(2 * self.checkpoint * self.between(devices))


def steps_between(times: Array, count: int, failures: Failures) -> int:
    """Steps from one checkpoint to the next: the interval, rounded, but at least 1 and at most ``count``."""
    return max(1, round(min(failures.interval / float(np.mean(times)), count)))


class Training(NamedTuple):
    """What a training took.

    Args:
        seconds: From the first step to the last checkpoint.
        useful: Seconds of the steps that counted.
        failures: The number of failures.
        checkpoints: The number of checkpoints.
        lost: Seconds of steps that had to be repeated, and of checkpoints that did not complete.
    """

    seconds: float
    useful: float
    failures: int
    checkpoints: int
    lost: float


def train(
    times: Array,
    count: int,
    failures: Failures,
    devices: int,
    *,
    seed: int = 0,
    tick: Callable[[int], None] | None = None,
) -> Training:
    """Simulate a training.

    Args:
        times: Seconds of simulated steps, shape ``(n,)``; the steps of the training are drawn from them.
        count: Steps of the training, >= 1.
        failures: Failures and checkpoints. There is a checkpoint after each interval, rounded to steps, and at the end.
        devices: The number of devices, >= 1.
        seed: Of the random numbers.
        tick: Called after each checkpoint with the number of steps since the last one.

    Raises:
        ArgumentError: An argument breaks its rule, or failures are so frequent that the training hardly ends.
    """
    checks.integer("count", count, 1, "give the steps of a training")
    checks.integer("devices", devices, 1, "give all devices of the mesh")
    mean, between = float(np.mean(times)), failures.between(devices)
    every = steps_between(times, count, failures)
    longest = every * mean + failures.checkpoint + failures.restart
    if longest > MOST * between:
        fixed = mean + failures.checkpoint + failures.restart  # with a checkpoint after every step
        remedy = "shorten the interval" if fixed <= MOST * between else "raise mtbf, or shorten checkpoint and restart"
        raise ArgumentError(
            f"mtbf must be long enough to reach the next checkpoint, but one of {devices} devices fails every "
            f"{between:.3g} s, and interval, checkpoint and restart take {longest:.3g} s; {remedy}"
        )
    env = simpy.Environment()
    run = _Run(env, times, failures, np.random.default_rng(seed))
    run.process = env.process(run.train(count, every, tick))
    if math.isfinite(between):
        env.process(run.fail(between))
    env.run(until=run.process)
    return Training(env.now, run.useful, run.failed, run.saved, run.lost)


class _Run:
    """The training and its failures; both are processes."""

    def __init__(self, env: Any, times: Array, failures: Failures, rng: np.random.Generator) -> None:
        self.env, self.times, self.failures, self.rng = env, times, failures, rng
        self.process: Any = None
        self.useful = self.lost = 0.0
        self.failed = self.saved = 0

    def fail(self, between: float) -> Generator[Any, Any, None]:
        """Interrupt the training again and again."""
        while True:
            yield self.env.timeout(self.rng.exponential(between))
            self.process.interrupt()

    def train(self, count: int, every: int, tick: Callable[[int], None] | None) -> Generator[Any, Any, None]:
        """Run all steps, ``every`` steps from one checkpoint to the next."""
        for start in range(0, count, every):
            steps = min(every, count - start)
            yield from self._reach(steps)
            self.saved += 1
            if tick is not None:
                tick(steps)

    def _reach(self, steps: int) -> Generator[Any, Any, None]:
        """Run steps and write a checkpoint, as often as it takes without a failure."""
        while True:
            begun, useful = self.env.now, self._draw(steps)
            try:
                yield self.env.timeout(useful + self.failures.checkpoint)
            except simpy.Interrupt:
                self.failed += 1
                self.lost += self.env.now - begun
                yield from self._restart()
            else:
                self.useful += useful
                return

    def _restart(self) -> Generator[Any, Any, None]:
        while True:
            try:
                yield self.env.timeout(self.failures.restart)
            except simpy.Interrupt:
                self.failed += 1
            else:
                return

    def _draw(self, steps: int) -> float:
        """Seconds of so many steps; the sum of many is normal."""
        if steps <= MANY:
            return float(self.rng.choice(self.times, steps).sum())
        spread = float(self.times.std()) * math.sqrt(steps)
        return steps * float(self.times.mean()) + spread * float(self.rng.standard_normal())
