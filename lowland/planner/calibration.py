"""Steps whose times differ by one known pass, and what they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lowland.core.errors import ONE_EXAMPLE, LossError
from lowland.core.probe import Plan, Probe, Reading
from lowland.core.vec import Vec
from lowland.engine import Engine
from lowland.executors.base import Executor, Work
from lowland.executors.local import Local
from lowland.methods.base import Method
from lowland.planner.canned import Recorded
from lowland.planner.layout import Layout
from lowland.planner.subject import Subject

Kind = Literal[
    "pass", "again", "displaced", "forward", "part",
    "together", "rounds", "unsynced", "unsynced displaced", "unsynced together", "unsynced rounds",
]  # fmt: skip
TINY = 1e-6  # the displacement of a calibrating pass, in every entry


@dataclass
class Order:
    """What the next step of a :class:`Calibration` asks for.

    Args:
        kind: "pass": a gradient at the weights. The others ask for it, too, and then for: "again", another one;
            "displaced", one at displaced weights; "forward", a forward pass; "part", a gradient of every second tensor.
            "together" asks for displaced gradients together, and for nothing else; "rounds" asks so twice; "unsynced"
            for a gradient that ranks do not average at once, "unsynced displaced" for a displaced one more, and
            "unsynced together" and "unsynced rounds" for such gradients together, once and twice.
        together: The number of gradients that are asked together.
    """

    kind: Kind = "pass"
    together: int = 2


@dataclass(frozen=True, kw_only=True)
class Calibration(Method):
    """Asks for what an order says. It is no method of the catalog: its steps time single passes.

    Args:
        order: The order, which changes between steps.
    """

    order: Order = field(default_factory=Order)
    synchronized: ClassVar[bool] = False
    whole_gradient: ClassVar[bool] = False

    def init(self, params: Sequence[Tensor]) -> dict[str, Any]:
        """A tiny displacement."""
        return {"at": [torch.full_like(p, TINY) for p in params]}

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        kind, at = self.order.kind, engine.memory["at"]
        sync = not kind.startswith("unsynced")
        if kind.endswith(("together", "rounds")):
            for _ in range(1 if kind.endswith("together") else 2):
                readings = yield tuple(Probe(batch, at=at, stats=not i, sync=sync) for i in range(self.order.together))
            return readings[0].loss, readings[0].grad
        here = yield Probe(batch, sync=sync)
        if kind == "again":
            yield Probe(batch, stats=False)
        elif kind.endswith("displaced"):
            yield Probe(batch, at=at, sync=sync)
        elif kind == "forward":
            yield Probe(batch, grad=False, stats=False)
        elif kind == "part":
            yield Probe(batch, stats=False, wrt=half(engine.params))
        return here.loss, here.grad


def half(params: Vec) -> list[bool]:
    """Every second tensor."""
    return [i % 2 == 0 for i in range(len(params))]


class Recording(Local):
    """Answers probes, and keeps the answers."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[Recorded] = []

    def run(self, work: Work, probes: tuple[Probe, ...]) -> tuple[Reading, ...]:
        """See :meth:`Executor.run`."""
        readings = super().run(work, probes)
        for reading in readings:
            assert reading.grad is not None
            grad = [g.clone() for g in reading.grad]
            self.recorded.append(Recorded(grad, reading.losses, reading.divisor, reading.loss))
        return readings


def record(subject: Subject, count: int = 2) -> list[Recorded]:
    """Answers of real passes at the weights, each on another half of the batch where it can be cut.

    Args:
        subject: The training.
        count: The number of answers, >= 1.
    """
    executor: Executor = Recording()
    engine, optimizers = subject.engine(Calibration(), Layout(), alone=True, executor=executor)
    size = subject.size
    for i in range(count):
        if size is None or size < 4:  # batch normalization needs two examples
            engine.backward(subject.batch)
        else:
            half_size = size // 2
            start = half_size * (i % 2)
            engine.backward(subject.batches.take(subject.batch, slice(start, start + half_size)))
        for optimizer in optimizers:
            optimizer.zero_grad()
    assert isinstance(executor, Recording)
    return executor.recorded


def cuttable(subject: Subject) -> bool:
    """Whether the loss can be cut into micro-batches, by trying it: a mean cannot, nor one that is expanded."""
    size = subject.size
    if size is None or size < 2:
        return False
    engine, _ = subject.engine(Calibration(), Layout(micro_batch=(size + 1) // 2), alone=True)
    try:
        engine.backward(subject.batch)
    except (LossError, ValueError):  # torch's batch normalization refuses a single example by a ValueError
        return False
    return True


def fewest(subject: Subject) -> int:
    """The fewest examples of a forward pass, by trying a single one, which batch normalization refuses."""
    if subject.size is None or subject.size < 2:
        return 1
    engine, _ = subject.engine(Calibration(), Layout(), alone=True)
    try:
        engine.backward(subject.part(1))
    except ValueError as error:
        return 2 if ONE_EXAMPLE in str(error) else 1
    return 1
