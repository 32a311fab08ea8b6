"""The time of a method's step on a mesh in closed form, from its asks.

The rules are those of :class:`lowland.executors.mesh.mesh.Mesh` and of data parallelism:

- With one group, passes run one after the other. With p groups, an ask of k passes runs in ceil(k / p) waves, and a
  wave takes as long as its longest pass.
- A synchronized gradient is averaged over the devices of its group by an all-reduce. Gradients that are not
  synchronized are averaged once, at the end of the step.
- After a wave with gradients, groups share them: an all-gather, or a broadcast if the wave has one pass, which all
  groups computed.

An exchange can hide in a backward if it may start before its end: the all-reduce of a gradient of all parameters, and
the exchange of such gradients between groups of one device. It is then sent in n equal messages,
``n = ceil(size / bucket)``, and what does not hide takes::

    max(last message, n messages - overlap * backward)

So the last message never hides, and the others hide in a fixed fraction of backward at their full speed. Other
exchanges begin after backward: the average of a gradient of some parameters, the average at the end of a step, and the
exchange between groups of several devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lowland.core.errors import ArgumentError, UsageError
from lowland.planner.asks import Ask, Pass, Step
from lowland.planner.links import all_gather_bytes, all_reduce_bytes, broadcast_bytes
from lowland.planner.setting import Setting


class Breakdown(NamedTuple):
    """The time of a step in seconds, and what each device sends.

    Args:
        compute: Passes, on the critical path.
        exchange: Exchanges, without what hides in a backward.
        arithmetic: The method's arithmetic on vectors.
        update: The optimizer's step.
        sent: Bytes that a device sends, on average over the devices.
    """

    compute: float
    exchange: float
    arithmetic: float
    update: float
    sent: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.compute + self.exchange + self.arithmetic + self.update


def predict(steps: Sequence[Step], setting: Setting) -> Breakdown:
    """The mean over a method's steps.

    Args:
        steps: The asks of each step, as :func:`lowland.planner.asks.read` gives them for ``width=setting.probe``.
        setting: The mesh.

    Raises:
        ArgumentError: There is no step.

    Example:
        >>> from lowland import SAM
        >>> from lowland.planner.asks import read
        >>> from lowland.planner.line import Line
        >>> from lowland.planner.links import Link, flat
        >>> lines = {"gradient": Line(0.25, 0.5), "forward": Line(0.0, 0.25), "network": flat(Link(0.5, 8.0))}
        >>> predict(read(SAM()), Setting(**lines, size=4, data=2, batch=4))
        Breakdown(compute=2.5, exchange=3.0, arithmetic=0.0, update=0.0, sent=8.0)
    """
    if not steps:
        raise ArgumentError("steps must have at least one step, but is empty; read(method) gives those of a method")
    found = {step: step_time(step, setting) for step in dict.fromkeys(steps)}
    columns = zip(*(found[step] for step in steps), strict=True)
    return Breakdown(*(math.fsum(column) / len(steps) for column in columns))


def device_hours(breakdown: Breakdown, setting: Setting, examples: float) -> float:
    """Hours of all devices together for a training on so many examples.

    Args:
        breakdown: A step's time.
        setting: The mesh.
        examples: Examples of the whole training, each epoch counted: ``epochs * len(dataset)``.
    """
    return setting.devices * breakdown.total * examples / setting.examples / 3600


def step_time(step: Step, setting: Setting) -> Breakdown:
    """The time of one step.

    Args:
        step: Its asks.
        setting: The mesh.

    Raises:
        UsageError: A mesh cannot answer the passes of an ask together.
    """
    compute = exchange = sent = 0.0
    for wave in waves(step, setting.probe):
        passes, unhidden = _wave(wave, setting)
        compute += passes
        exchange += unhidden
        sent += _sent(wave, setting)
    if averaged_at_the_end(step, setting):
        exchange += setting.network.all_reduce(setting.replicas, setting.size)
        sent += all_reduce_bytes(setting.data, setting.size)
    return Breakdown(compute, exchange, setting.arithmetic, setting.update, sent)


def waves(step: Step, probe: int) -> list[Ask]:
    """The passes of a step in the order in which they run; those of a wave run at the same time.

    Args:
        step: The asks.
        probe: The number of groups of devices.

    Raises:
        UsageError: A mesh cannot answer the passes of an ask together.

    Example:
        >>> from lowland import SAMPa
        >>> from lowland.planner.asks import read
        >>> [len(waves(read(SAMPa())[1], probe)) for probe in (1, 2)]
        [2, 1]
    """
    for ask in step if probe > 1 else ():
        if len({p.tensors for p in ask}) > 1:
            raise UsageError(
                "on a mesh, the passes of an ask must all want the same gradients, but they want gradients of the "
                f"fractions {sorted({p.tensors for p in ask})} of the parameters; set probe=1"
            )
    return [ask[start : start + probe] for ask in step for start in range(0, len(ask), probe)]


def averaged_at_the_end(step: Step, setting: Setting) -> bool:
    """Whether a step ends with an average of its result over the devices of a group."""
    return setting.data > 1 and any(p.tensors > 0 and not p.synced for ask in step for p in ask)


def averaged(one: Pass, setting: Setting) -> bool:
    """Whether a pass is followed by an average of its gradient over the devices of a group."""
    return setting.data > 1 and one.tensors > 0 and one.synced


def pass_time(one: Pass, setting: Setting) -> float:
    """Seconds of a pass. A gradient of some parameters counts as one of all: its backward may reach the first layer."""
    return setting.pass_seconds(one.examples, backward=one.tensors > 0)


def average_time(one: Pass, setting: Setting, backward: float) -> float:
    """Seconds of the average of a pass's gradient that do not hide in its backward.

    Args:
        one: The pass.
        setting: The mesh.
        backward: Seconds of the backward.
    """
    place, network = setting.replicas, setting.network
    if one.tensors < 1:
        return network.all_reduce(place, one.tensors * setting.size)
    return _unhidden(lambda size: network.all_reduce(place, size), setting, backward)


def exchange_time(wave: Ask, setting: Setting, backward: float) -> float:
    """Seconds of the exchange between groups that do not hide in a backward.

    Args:
        wave: The passes.
        setting: The mesh.
        backward: Seconds of the backward that ended last.
    """
    if setting.probe == 1 or not wave[0].tensors:
        return 0.0
    share = setting.network.all_gather if len(wave) > 1 else setting.network.broadcast
    hides = setting.data == 1 and wave[0].tensors == 1
    return _unhidden(lambda size: share(setting.probes, size), setting, backward if hides else 0.0)


def _wave(wave: Ask, setting: Setting) -> tuple[float, float]:
    """Seconds of the passes of a wave, and of its exchanges after them."""
    times = [pass_time(p, setting) for p in wave]
    backwards = [setting.backward_seconds(p.examples) if p.tensors else 0.0 for p in wave]
    after = [average_time(p, setting, b) if averaged(p, setting) else 0.0 for p, b in zip(wave, backwards, strict=True)]
    last = max(range(len(wave)), key=lambda i: times[i] + after[i])
    end = times[last] + after[last] + exchange_time(wave, setting, backwards[last])
    return max(times), end - max(times)


def _unhidden(seconds: Callable[[float], float], setting: Setting, backward: float) -> float:
    """Seconds of messages of all parameters that do not hide in a backward."""
    each = seconds(setting.size / setting.messages)
    return max(each, setting.messages * each - setting.overlap * backward)


def _sent(wave: Ask, setting: Setting) -> float:
    """Bytes that a device sends in a wave, on average over all devices."""
    groups = [wave[i % len(wave)] for i in range(setting.probe)]  # the pass of each group
    means = [p.tensors * all_reduce_bytes(setting.data, setting.size) if averaged(p, setting) else 0.0 for p in groups]
    shared = broadcast_bytes if len(wave) == 1 else all_gather_bytes
    exchanged = shared(setting.probe, setting.size) if wave[0].tensors else 0.0
    return sum(means) / setting.probe + exchanged
