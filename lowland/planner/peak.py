"""Predicts the peak of a rank's memory: what a method keeps while a pass runs, and what the pass takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim import Optimizer

from lowland.core.probe import Probe, Reading
from lowland.engine import Engine
from lowland.executors.base import Work
from lowland.executors.local import Local
from lowland.methods.base import Method
from lowland.planner.asks import Pass
from lowland.planner.calibration import Calibration, Order, record
from lowland.planner.canned import Recorded
from lowland.planner.layout import Layout
from lowland.planner.line import Line, fit
from lowland.planner.memory import LiveTensors
from lowland.planner.rehearsal import Rehearsal, enough
from lowland.planner.subject import Subject, train_step

USUAL = 4  # steps after which one was measured that the engine does not watch: it watches steps 0, 1, 2, 4, 8, …
STEPS = 6  # steps whose memory is measured: a cycle of LookSAM(k=5) and the next refresh
Kind = Literal["again", "displaced", "forward"]
KINDS: tuple[Kind, ...] = ("again", "displaced", "forward")


class _Metered(Local):
    """Answers probes, and notes how far memory rises above what was there when a pass began."""

    def __init__(self, meter: LiveTensors) -> None:
        super().__init__()
        self.meter, self.last = meter, 0

    def run(self, work: Work, probes: tuple[Probe, ...]) -> tuple[Reading, ...]:
        """See :meth:`lowland.executors.base.Executor.run`."""
        before, self.meter.peak = self.meter.live, self.meter.live
        readings = super().run(work, probes)
        self.last = self.meter.peak - before
        return readings


def passes(subject: Subject, sizes: Sequence[int], *, cut: bool = False) -> dict[Kind, Line]:
    """The bytes that a pass takes beyond what was there, against its examples, by kind.

    They are activations, the gradient, and at displaced weights the saved weights.

    Args:
        subject: The training.
        sizes: The examples of a pass, at least two numbers that differ.
        cut: Whether each is a micro-batch of two, so that the second meets the first one's gradient.
    """
    lines: dict[Kind, Line] = {}
    for kind in KINDS:
        taken = []
        for size in sizes:
            with LiveTensors() as meter:
                executor = _Metered(meter)
                method = Calibration(order=Order(kind=kind))
                layout, batch = Layout(micro_batch=size if cut else None), subject.part(size * (2 if cut else 1))
                engine, optimizers = subject.engine(method, layout, alone=True, executor=executor)
                _train(engine, optimizers, batch, USUAL)
                taken.append(float(executor.last))
        lines[kind] = fit(sizes, taken)
    return lines


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a method has in memory.

    Args:
        passes: The passes of the looked-at steps, each with the bytes that are there when it begins: the model, the
            optimizers' states, and what the method keeps.
        arithmetic: The most bytes between passes.
    """

    passes: tuple[tuple[Pass, int], ...]
    arithmetic: int

    def peak(
        self, lines: Mapping[Kind, Line], layout: Layout, examples: int, cut: Mapping[Kind, Line] | None = None
    ) -> float:
        """The peak in bytes, without the batch and without buffers of exchanges.

        Args:
            lines: What passes take, from :func:`passes`.
            layout: The layout.
            examples: The examples of a step.
            cut: What passes in micro-batches take, against the examples of one; None is what others take.
        """
        peaks = [there + _taken(one, lines, cut or lines, layout, examples) for one, there in self.passes]
        return max(float(self.arithmetic), *peaks)


def _taken(one: Pass, lines: Mapping[Kind, Line], cut: Mapping[Kind, Line], layout: Layout, examples: int) -> float:
    n = examples * one.examples / layout.data
    if layout.micro_batch is not None and n > layout.micro_batch:
        n, lines = layout.micro_batch, cut
    if not one.tensors:
        return lines["forward"](n)
    here = lines["again"](n)
    # Of a gradient of some tensors, only these are displaced and saved.
    return here + one.entries * (lines["displaced"](n) - here) if one.displaced else here


def kept(
    subject: Subject,
    method: Method,
    width: int = 1,
    recorded: Sequence[Recorded] | None = None,
    examples: int | None = None,
) -> Kept:
    """What a method has in memory when its passes begin.

    Args:
        subject: The training.
        method: The method.
        width: How many probes the plan is told are answered at once.
        recorded: Answers of passes; None runs them.
        examples: The examples of a step; None are those of the batch.
    """
    recorded = recorded or record(subject)
    found: list[tuple[Pass, int]] = []
    steps = enough(subject, method, width)  # before the meter, which would count the tiny training
    with LiveTensors() as meter:
        rehearsal = Rehearsal(subject, method, width, recorded, examples)
        rehearsal.canned.watch = lambda one: found.append((one, meter.live))
        for number in range(steps):
            rehearsal.step(number)
        arithmetic = meter.peak
    return Kept(passes=tuple(dict.fromkeys(found)), arithmetic=arithmetic)


def exchanged(layout: Layout, *, synced: bool, shared: bool) -> float:
    """The memory of exchanges between ranks, in multiples of the parameters.

    Ranks that share a batch have the gradients a second time, in the buckets of DistributedDataParallel, and once more
    while they average what a method has made of gradients that were not averaged. A rank of a probe mesh has buffers
    for its own gradient and for those of all groups; in shared memory it has two for its own gradient, and reads the
    others'. What it copies for the plan, the method keeps.

    Args:
        layout: The layout.
        synced: Whether all gradients of the method are averaged at once.
        shared: Whether the ranks of a probe mesh share memory.
    """
    buckets = 0.0 if layout.data == 1 else 1.0 if synced else 2.0
    return buckets + (0.0 if layout.probe == 1 else 2.0 if shared else 1.0 + layout.probe)


def measured(subject: Subject, method: Method, layout: Layout, steps: int = STEPS) -> int:
    """The peak in bytes while a method trains on one rank, to hold a prediction against."""
    with LiveTensors() as meter:
        engine, optimizers = subject.engine(method, layout, alone=True)
        _train(engine, optimizers, subject.batch, steps)
    return int(meter.peak)


def _train(engine: Engine, optimizers: Sequence[Optimizer], batch: Any, steps: int) -> None:
    """Take steps."""
    for _ in range(steps):
        train_step(engine, optimizers, batch)
