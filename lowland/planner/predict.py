"""Predicts a method's step in a layout from single passes and the method's own work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lowland.planner.asks import Ask, Pass, Step
from lowland.planner.calibration import Kind
from lowland.planner.layout import Layout, waves
from lowland.planner.line import Line
from lowland.planner.measure import CHOSEN, Own, Rates


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a step is predicted to take.

    Args:
        method: The method as text.
        layout: The layout.
        examples: The examples of a step.
        seconds: The mean time of a step.
        error: The standard error of this time by the scatter of the fitted lines, as a fraction of it; None where
            nothing tells it, because a pass was timed at two sizes, or took no longer than the clock scatters.
        passes: Seconds of the passes that follow each other, as one device takes them alone.
        busy: Seconds more, because the other ranks compute at the same time.
        exchange: Seconds of exchanges between ranks that backward does not hide.
        own: Seconds of the method's own arithmetic and of the update.
        bytes: Bytes of gradients that the first rank sends in a step; None where it is not modeled.
        memory: The peak of a rank's memory in bytes; None where it was not measured or is not modeled.
    """

    method: str
    layout: Layout
    examples: int
    seconds: float
    error: float | None
    passes: float
    busy: float
    exchange: float
    own: float
    bytes: float | None
    memory: float | None = None

    @property
    def speed(self) -> float:
        """Examples in a second."""
        return self.examples / self.seconds

    @property
    def bound(self) -> str:
        """What a step spends most of its time on beside its passes, or "passes" if that is less than a tenth."""
        parts = {"busy": self.busy, "exchange": self.exchange, "own": self.own}
        largest = max(parts, key=lambda name: parts[name])
        return largest if parts[largest] >= 0.1 * self.seconds else "passes"


@dataclass
class _Sum:
    """Seconds, and the square of their standard error, if it is known."""

    seconds: float = 0.0
    square: float | None = 0.0

    def add(self, line: Line, size: float, factor: float = 1.0) -> None:
        """Add a time on a line."""
        time = factor * line(size)
        self.seconds += time
        if time and (self.square is None or line.error is None):
            self.square = None
        elif time and self.square is not None and line.error is not None:
            self.square += (line.error * time) ** 2


def predict(
    own: Own, layout: Layout, examples: int, *, here: Rates, busy: Rates, quiet: Rates, parameters: int
) -> Prediction:
    """The mean step of a method in a layout.

    A step takes the method's own work; then, for every ask, one round of passes for as many probes as the layout
    answers at once; and what ranks compare and average once a step. A pass over n examples takes a time on a line.

    Args:
        own: The method's own work, with the asks of its steps.
        layout: The layout.
        examples: The examples of a step, of all ranks together.
        here: The rates of the layout.
        busy: The rates of ranks that train at the same time, each for itself; on one rank those of the layout.
        quiet: The rates of one device alone.
        parameters: The bytes of the parameters.
    """
    steps = own.asked(layout.data)
    shown = [_step(step, layout, examples, here, busy, quiet) for step in steps]
    apart = [_alone(step, layout, examples, busy, quiet) for step in steps]
    single = [_alone(step, layout, examples, quiet, quiet) for step in steps]
    count = len(steps)
    total, of_own = sum(s.seconds for s in shown) / count, sum(own.seconds) / len(own.seconds)
    passes, with_others = sum(s.seconds for s in single) / count, sum(s.seconds for s in apart) / count
    if layout.ranks == 1:  # one device exchanges nothing and has no neighbors: all but its own work are passes
        passes = with_others = total
    return Prediction(
        method=own.method,
        layout=layout,
        examples=examples,
        seconds=total + of_own,
        error=_error([s.square for s in shown], total + of_own),
        passes=passes,
        busy=with_others - passes,
        exchange=total - with_others,
        own=of_own,
        bytes=sum(sent(step, layout) for step in steps) / count * parameters,
    )


def _error(squares: Sequence[float | None], seconds: float) -> float | None:
    """The standard error of the mean of steps, as a fraction of it; None if that of a step is not known."""
    known = [square for square in squares if square is not None]
    return None if len(known) < len(squares) else math.sqrt(sum(known) / len(known)) / seconds


def _step(step: Step, layout: Layout, examples: int, here: Rates, busy: Rates, quiet: Rates) -> _Sum:
    """The passes and exchanges of one step."""
    first, further = rounds(step, here)
    total, round_line = _Sum(here.once), first
    for ask in step:
        if len(ask) > 1 and layout.width > 1:
            for wave in _waves(ask, layout):
                n = _examples(wave, examples, layout)
                more = len(pieces(n, layout.micro_batch)) - 1
                total.add(here.lines[round_line], n)
                total.add(busy.lines["displaced"], 0, more)  # a micro-batch more adds what a pass of none takes
                total.seconds -= _relief(wave, layout, examples, busy, quiet)
                if not any(p.displaced for p in wave):  # rounds were timed with displaced passes
                    total.seconds -= max(busy.lines["displaced"](n) - busy.lines["again"](n), 0.0)
                round_line = further
        else:
            for one in ask:
                _add(total, one, layout, examples, _rates(one, layout, examples, here, busy), busy)
    averaged = round_line == "unsynced rounds"  # the line of the first round has the average
    if "unsynced" in here.lines and not averaged and _averages_at_the_end(step):
        n = examples / layout.data
        total.seconds += max(here.lines["unsynced"](n) - unsynced(here, busy, n).lines["again"](n), 0.0)
    return total


def rounds(step: Step, here: Rates) -> tuple[Kind, Kind]:
    """The lines of the first and of each further round on a probe mesh, by whether ranks average in them."""
    if "unsynced rounds" in here.lines and not any(p.synced for ask in step for p in ask if p.tensors):
        return "unsynced together", "unsynced rounds"
    return "together", "rounds"


def _rates(one: Pass, layout: Layout, examples: int, here: Rates, busy: Rates) -> Rates:
    """The rates of a pass: the layout's where it takes part in exchanges, as losses and some gradients do not."""
    if layout.data == 1 or (one.synced and one.tensors == 1):
        return here
    return unsynced(here, busy, one.examples * examples / layout.data) if one.tensors else busy


def unsynced(here: Rates, busy: Rates, examples: float) -> Rates:
    """The rates of passes whose gradients ranks do not average at once, on so many examples.

    They were timed at displaced weights; what displacing takes is known from ranks that train for themselves. A pass of
    such a rank does no more, so these take at least as long, also where their line says less: a step may have many of
    them, each shorter than those that were timed.
    """
    displaced = here.lines.get("unsynced displaced")
    if displaced is None or displaced(examples) < busy.lines["displaced"](examples):
        return busy
    base, slope = (
        getattr(busy.lines["displaced"], name) - getattr(busy.lines["again"], name) for name in ("base", "slope")
    )
    again = replace(displaced, base=displaced.base - base, slope=displaced.slope - slope)
    return replace(busy, lines={**busy.lines, "displaced": displaced, "again": again})


def _averages_at_the_end(step: Step) -> bool:
    passes = [p for ask in step for p in ask if p.tensors]
    return any(not p.synced or p.tensors < 1 for p in passes)


def _alone(step: Step, layout: Layout, examples: int, rates: Rates, quiet: Rates) -> _Sum:
    """The passes of one step that follow each other, without what ranks exchange."""
    total = _Sum()
    for ask in step:
        for wave in _waves(ask, layout):
            _add(total, max(wave, key=lambda p: p.examples), layout, examples, rates, rates)
            total.seconds -= _relief(wave, layout, examples, rates, quiet)
    return total


def _waves(ask: Ask, layout: Layout) -> list[Ask]:
    """The passes of an ask that run at the same time, in their order."""
    return [ask[start : start + layout.width] for start in range(0, len(ask), layout.width)]


def _relief(wave: Ask, layout: Layout, examples: int, busy: Rates, quiet: Rates) -> float:
    """Seconds that a wave ends earlier, because some of its passes are shorter than the longest.

    A group whose pass has ended no longer slows the others down. Every other rank is taken to add the same to what
    busy ranks take longer than quiet ones.
    """
    line = busy.lines["displaced"]
    longest = _examples(wave, examples, layout)
    slowed = line(longest) - quiet.lines["displaced"](longest)
    if len(wave) == 1 or slowed <= 0:
        return 0.0
    idle = sum(1 - line(p.examples * examples / layout.data) / line(longest) for p in wave)
    return slowed * idle * layout.data / (layout.ranks - 1)


def _add(total: _Sum, one: Pass, layout: Layout, examples: int, rates: Rates, busy: Rates) -> None:
    """Add one pass; every micro-batch more adds what a pass without examples takes, and exchanges nothing."""
    kind = "forward" if not one.tensors else "displaced" if one.displaced else "again"
    n = examples * one.examples / layout.data
    more = len(pieces(n, layout.micro_batch)) - 1
    total.add(rates.lines[kind], n, partial(one, rates, n))
    total.add(busy.lines[kind], 0, more * partial(one, busy, n))


def partial(one: Pass, rates: Rates, examples: float) -> float:
    """What a gradient of some tensors takes, as a fraction of one of all tensors.

    Forward is whole. Backward passes through all layers from the last to the first chosen tensor, and computes the
    gradients of the chosen ones. Calibrating steps with every second tensor tell how large the first share is.
    """
    if not 0 < one.tensors < 1:
        return 1.0
    forward = min(rates.lines["forward"](examples) / max(rates.lines["again"](examples), 1e-12), 1.0)
    backward = 1 - forward
    through = 1.0 if backward <= 0 else ((rates.part - forward) / backward - CHOSEN) / (1 - CHOSEN)
    through = min(max(through, 0.0), 1.0)
    return forward + backward * (through * one.reach + (1 - through) * one.tensors)


def pieces(examples: float, most: int | None) -> list[float]:
    """The sizes of the micro-batches of one pass.

    Example:
        >>> pieces(10, 4)
        [4, 4, 2]
    """
    if most is None or examples <= most:
        return [examples]
    whole = int(examples // most)
    rest = examples - whole * most
    return [most] * whole + ([rest] if rest > 1e-9 else [])


def _examples(ask: Ask, examples: int, layout: Layout) -> float:
    return max(p.examples for p in ask) * examples / layout.data


def sent(step: Step, layout: Layout) -> float:
    """The gradients that the first rank sends in a step, in multiples of the parameters.

    A probe group sends its gradient once in every round of an ask. Ranks that share a batch average every synchronized
    gradient once; of gradients of some tensors only these; and the result of a step with unsynchronized gradients.
    """
    total = 0.0
    for ask in step:
        rounds = waves(ask, layout.probe)
        mine = [p for p in ask if p.tensors][: rounds if layout.probe > 1 else None]
        if layout.probe > 1:
            total += len(mine)
        if layout.data > 1:
            total += sum(p.entries for p in mine if p.synced)
    if layout.data > 1 and any(p.tensors and not p.synced for ask in step for p in ask):
        total += 1
    return total


def order(one: Prediction) -> tuple[float, int]:
    """The key that sorts predictions, the fastest first; of equal ones, the one without micro-batches."""
    return round(one.seconds, 9), 0 if one.layout.micro_batch is None else 1


def best(predictions: Sequence[Prediction]) -> dict[str, Prediction]:
    """The fastest layout of every method, the fastest method first."""
    fastest: dict[str, Prediction] = {}
    for one in sorted(predictions, key=order):
        fastest.setdefault(one.method, one)
    return fastest
