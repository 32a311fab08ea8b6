"""Measures what steps are made of: single passes in every layout, and each method's own arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from lowland.core.errors import LowlandError
from lowland.methods.base import Method
from lowland.planner.asks import Step, shape, size
from lowland.planner.calibration import Calibration, Kind, Order, record
from lowland.planner.canned import Canned, Recorded
from lowland.planner.layout import Layout
from lowland.planner.line import Line, fit
from lowland.planner.rehearsal import Rehearsal
from lowland.planner.subject import Subject, train_step
from lowland.planner.turns import Turn

ORDERED: tuple[Kind, ...] = ("pass", "again", "displaced", "forward", "part")
LEAST = 1e-9  # seconds of a pass where the steps with it took no longer than those without
CHOSEN = 0.5  # the fraction of the tensors whose gradient the order "part" asks for, up to one tensor


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What passes take in one layout.

    Args:
        layout: The layout.
        lines: Seconds of a pass against the examples of a rank, by kind: "again", "displaced", "forward"; "together",
            a step's first round of displaced passes, one in every probe group; "rounds", each further one; "unsynced",
            a step's pass whose gradient ranks average at the end of the step, with this average; "unsynced
            displaced", each further one, at displaced weights; "unsynced together", a step's first round of such
            passes, with the average; "unsynced rounds", each further one.
        once: Seconds of a step beyond its passes and the method's own work: what ranks compare and average once.
        part: The time of a gradient of half of the tensors, as a fraction of one of all tensors.
        alone: Whether every rank trains for itself at the same time.
        collectives: Seconds of a collective against the bytes of one rank, alone and with nothing to hide behind:
            "all-reduce" over the data dimension, "all-gather" and "broadcast" over the probe dimension.
    """

    layout: Layout
    lines: Mapping[str, Line]
    once: float
    part: float
    alone: bool = False
    collectives: Mapping[str, Line] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Own:
    """What a method does beyond its passes.

    Args:
        method: The method as text.
        steps: The asks of steps that are spread over the training.
        seconds: The time of each of these steps without its passes, with the update by the base optimizer.
        width: The number of probes that the plan was told are answered at once.
        untimed: The fraction of these steps whose kind was not timed; they have the time of the most similar kind.
        parts: The asks of steps on a rank's part of the batch, by the number of parts, where they are others, as of
            methods that choose a number of examples; none where the method refuses a part.
    """

    method: str
    steps: tuple[Step, ...]
    seconds: tuple[float, ...]
    width: int = 1
    untimed: float = 0.0
    parts: Mapping[int, tuple[Step, ...]] = field(default_factory=dict)

    def asked(self, data: int) -> tuple[Step, ...]:
        """The asks of steps on one of ``data`` parts of the batch; empty if the method refuses it."""
        return self.parts.get(data, self.steps)


@dataclass
class _Calibrating:
    """The engine of one layout, whose steps follow an order."""

    subject: Subject
    layout: Layout
    mesh: Any
    alone: bool
    order: Order = field(default_factory=Order)

    def __post_init__(self) -> None:
        self.order.together = self.layout.width
        method = Calibration(order=self.order)
        self.engine, self.optimizers = self.subject.engine(method, self.layout, self.mesh, alone=self.alone)

    def turn(self, kind: Kind, examples: int) -> Turn:
        """The step of a kind on this many examples."""
        batch = self.subject.part(examples)

        def prepare() -> None:
            self.order.kind = kind

        return Turn(lambda: train_step(self.engine, self.optimizers, batch), prepare)

    def kinds(self) -> tuple[Kind, ...]:
        """What can be ordered in this layout."""
        more: list[Kind] = []
        if self.layout.width > 1:
            more += ["together", "rounds"]
        if self.layout.data > 1 and not self.alone:
            more += ["unsynced", "unsynced displaced"]
            more += ["unsynced together", "unsynced rounds"] if self.layout.width > 1 else []
        return (*ORDERED, *more)


def passes(
    subject: Subject, layout: Layout, sizes: Sequence[int], mesh: Any = None, *, alone: bool = False
) -> dict[tuple[Kind, int], Turn]:
    """The turns that measure the passes of a layout.

    Args:
        subject: The training.
        layout: The layout.
        sizes: The examples of a rank, at least two numbers that differ.
        mesh: The ``DeviceMesh`` of the layout; None on one rank.
        alone: Whether every rank trains for itself.
    """
    calibrating = _Calibrating(subject, layout, mesh, alone)
    return {(kind, n): calibrating.turn(kind, n) for kind in calibrating.kinds() for n in sizes}


def arithmetic(
    subject: Subject, method: Method, width: int = 1, recorded: Sequence[Recorded] | None = None
) -> tuple[Turn, Canned]:
    """The turn that measures a method's own work, and the executor that has written down its asks.

    ``recorded`` are answers of passes; None runs them.
    """
    canned = Canned(recorded or record(subject), width, subject.batches)
    engine, optimizers = subject.engine(method, Layout(), alone=True, executor=canned)
    return Turn(lambda: train_step(engine, optimizers, subject.batch), canned.stock), canned


def rates(
    layout: Layout, seconds: Mapping[tuple[Kind, int], Sequence[float]], own: float, *, alone: bool = False
) -> Rates:
    """The rates of a layout from the times of its turns.

    Args:
        layout: The layout.
        seconds: The times of the turns of :func:`passes`, by kind and examples.
        own: Seconds of a calibrating step without its passes.
        alone: Whether every rank trained for itself.
    """
    sizes = sorted({n for _, n in seconds})
    kinds = {kind for kind, _ in seconds}

    def beyond(kind: Kind, less: Kind = "pass") -> list[float]:
        """Seconds that a step of a kind takes beyond one that has a pass, or a round, less; at every size.

        They are a difference of medians, because medians of steps are predicted. Single steps are late rather than
        early, so a median of differences would lie below it.
        """
        return [max(median(seconds[kind, n]) - median(seconds[less, n]), LEAST) for n in sizes]

    lines = {kind: _fitted(sizes, beyond(kind)) for kind in ("again", "displaced", "forward")}
    parts = [p / max(q, 1e-9) for p, q in zip(beyond("part"), beyond("again"), strict=True)]
    once = median(median(seconds["pass", n]) - own - lines["again"](n) for n in sizes)
    for kind in ("together", "unsynced", "unsynced together"):
        if kind in kinds:
            whole = [max(median(seconds[kind, n]) - own - max(once, 0.0), LEAST) for n in sizes]
            lines[kind] = _fitted(sizes, whole)
    further: dict[Kind, Kind] = {
        "rounds": "together", "unsynced displaced": "unsynced", "unsynced rounds": "unsynced together",
    }  # fmt: skip
    lines |= {kind: _fitted(sizes, beyond(kind, first)) for kind, first in further.items() if kind in kinds}
    return Rates(layout=layout, lines=lines, once=max(once, 0.0), part=min(median(parts), 1.0), alone=alone)


def _fitted(sizes: Sequence[int], seconds: Sequence[float]) -> Line:
    """The line through times; where the clock resolved none at a size, its error is not known."""
    line = fit(sizes, seconds)
    return replace(line, error=None) if min(seconds) <= LEAST else line


def own(
    method: str,
    canned: Canned,
    seconds: Sequence[float],
    whole: Sequence[Step] = (),
    parts: Mapping[int, tuple[Step, ...]] | None = None,
) -> Own:
    """What a method does beyond its passes, from the times of its last steps.

    A step's time is the median of all timed steps that ask alike, because single steps scatter. A kind of step that
    was not timed has the time of the kind whose passes have most nearly as many examples.

    Args:
        method: The method as text.
        canned: What has written down the asks of the timed steps.
        seconds: The times of its last steps.
        whole: The asks of steps that are spread over the training; by default those of the timed steps.
        parts: See :class:`Own`.
    """
    timed = tuple(canned.steps[-len(seconds) :])
    steps = tuple(whole) or timed
    alike: dict[Any, list[float]] = {}
    for step, lap in zip(timed, seconds, strict=True):
        alike.setdefault(shape(step), []).append(lap)
    typical = {key: median(laps) for key, laps in alike.items()}
    nearest = {key: min(typical, key=lambda one: abs(size(one) - size(key))) for key in set(map(shape, steps))}
    return Own(
        method=method,
        steps=steps,
        seconds=tuple(typical[nearest[shape(step)]] for step in steps),
        width=canned.width,
        untimed=sum(shape(step) not in typical for step in steps) / len(steps),
        # Where the passes are the same, the tensors of the timed steps are those of more steps.
        parts={n: asks for n, asks in (parts or {}).items() if set(map(shape, asks)) != set(map(shape, steps))},
    )


def attempted(
    subject: Subject, methods: Iterable[tuple[str, Method]], width: int, recorded: Sequence[Recorded]
) -> dict[str, Rehearsal]:
    """The rehearsals of those methods that can train here; a method that the engine refuses is left out."""
    made = {}
    for text, method in methods:
        try:
            rehearsal = Rehearsal(subject, method, width, recorded)
            rehearsal.run(alike=1)
        except LowlandError:
            continue
        made[text] = rehearsal
    return made


def parts(
    subject: Subject, method: Method, width: int, recorded: Sequence[Recorded], numbers: Iterable[int]
) -> dict[int, tuple[Step, ...]]:
    """The asks of a method's steps on a part of the batch, by the number of parts; see :class:`Own`."""
    made: dict[int, tuple[Step, ...]] = {}
    for number in numbers:
        try:
            made[number] = Rehearsal(subject, method, width, recorded, (subject.size or 1) // number).run()
        except LowlandError:
            made[number] = ()
    return made
