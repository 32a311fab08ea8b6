"""The steps of a method on a mesh, as events.

There is one process for each group of devices, and one event for each wave of a group, however many devices it has: the
clocks of a group's devices are an array. Groups meet after each wave. Seconds of passes and of collectives are those of
:mod:`lowland.planner.ideal`; what waits for what comes from the events.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

from lowland.core import checks
from lowland.core.errors import ArgumentError, MissingExtraError
from lowland.planner.asks import Ask, Step
from lowland.planner.ideal import average_time, averaged, averaged_at_the_end, exchange_time, pass_time, waves
from lowland.planner.setting import Setting
from lowland.planner.simulation.noise import Array, Noise

try:
    import numpy as np
    import simpy
except ImportError:
    raise MissingExtraError("simpy", "lab") from None


def step_times(
    steps: Sequence[Step],
    setting: Setting,
    count: int,
    *,
    noise: Noise | None = None,
    seed: int = 0,
    tick: Callable[[], None] | None = None,
) -> Array:
    """Simulate steps.

    Args:
        steps: The asks of each step of the method, which repeat; see :func:`lowland.planner.asks.read`.
        setting: The mesh.
        count: The number of steps, >= 1.
        noise: The differences between devices; by default there are none.
        seed: Of the random numbers; the same seed gives the same times.
        tick: Called after each step.

    Returns:
        The seconds of each step, shape ``(count,)``.

    Raises:
        ArgumentError: An argument breaks its rule.
    """
    checks.integer("count", count, 1, "1000 show the mean to a few per mille")
    if not steps:
        raise ArgumentError("steps must have at least one step, but is empty; read(method) gives those of a method")
    env, seconds = simpy.Environment(), np.empty(count)
    env.process(_run(env, steps, setting, noise or Noise(), np.random.default_rng(seed), seconds, tick))
    env.run()
    return seconds


def _run(
    env: Any,
    steps: Sequence[Step],
    setting: Setting,
    noise: Noise,
    rng: np.random.Generator,
    seconds: Array,
    tick: Callable[[], None] | None,
) -> Generator[Any, Any, None]:
    for number in range(len(seconds)):
        step, begun = steps[number % len(steps)], env.now
        factors = noise.draw(rng, (setting.probe, setting.data))
        meeting = _Meeting(env, setting)
        yield env.all_of(
            [env.process(_group(env, step, setting, g, factors[g], meeting)) for g in range(setting.probe)]
        )
        yield env.timeout(setting.arithmetic + setting.update)
        seconds[number] = env.now - begun
        if tick is not None:
            tick()


def _group(
    env: Any, step: Step, setting: Setting, number: int, factors: Array, meeting: _Meeting
) -> Generator[Any, Any, None]:
    """One step of a group: ``factors`` are those of its devices, shape ``(data,)``."""
    clocks = np.full(setting.data, env.now)  # when each device has completed what it has begun
    for wave in waves(step, setting.probe):
        one = wave[number % len(wave)]
        clocks = clocks + pass_time(one, setting) * factors
        backwards = factors * (setting.backward_seconds(one.examples) if one.tensors else 0.0)
        if averaged(one, setting):
            last = clocks.argmax()
            clocks = np.full(setting.data, clocks[last] + average_time(one, setting, backwards[last]))
        yield _until(env, clocks)
        if setting.probe > 1:
            clocks = yield meeting.join(wave, clocks, backwards)
            yield _until(env, clocks)
    if averaged_at_the_end(step, setting):
        clocks = np.full(setting.data, clocks.max() + setting.network.all_reduce(setting.replicas, setting.size))
        yield _until(env, clocks)


def _until(env: Any, clocks: Array) -> Any:
    """The event at which the last device is done."""
    return env.timeout(max(float(clocks.max()) - env.now, 0.0))


class _Meeting:
    """Where groups share the gradients of a wave: a device waits for its peers in the other groups."""

    def __init__(self, env: Any, setting: Setting) -> None:
        self._env, self._setting = env, setting
        self._present: list[tuple[Array, Array]] = []
        self._complete = env.event()

    def join(self, wave: Ask, clocks: Array, backwards: Array) -> Any:
        """The event at which all groups are here; its value is the clocks after the exchange, shape ``(data,)``."""
        self._present.append((clocks, backwards))
        complete = self._complete
        if len(self._present) == self._setting.probe:
            all_clocks, all_backwards = (np.stack(x) for x in zip(*self._present, strict=True))  # (probe, data)
            # Only groups of one device hide the exchange in backward: that of the device that is last.
            backward = float(all_backwards[all_clocks[:, 0].argmax(), 0])
            complete.succeed(all_clocks.max(0) + exchange_time(wave, self._setting, backward))
            self._present, self._complete = [], self._env.event()
        return complete
