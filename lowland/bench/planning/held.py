"""Holds predictions against measured steps: times, bytes, memory, and the choice of a layout.

For each number of processes one survey times single passes, the methods' arithmetic, and the methods' steps in turn.
The predictions know the steps of no method, and passes only on other numbers of examples than the methods' passes have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from lowland.bench.planning import simulated
from lowland.bench.planning.cases import CASES, Case, sizes
from lowland.core.errors import UnknownNameError
from lowland.methods import make
from lowland.planner import peak, planning, ranks, record
from lowland.planner.layout import Layout
from lowland.planner.predict import Prediction
from lowland.planner.survey import Measured, Survey

WORKER = "lowland.bench.planning.worker"
PROCESSES = (1, 2, 4)
METHODS = (
    *("sam", "sampa", "looksam", "micro-sam:m=4", "esam", "gsam", "momentum-sam:rho=0.1", "friendly-sam"),
    *("async-sam", "wsam", "k-sam"),
)
STEPS = 20  # of the progress of one number of processes
NEAR = 0.03  # a layout counts as the fastest if it takes at most so much longer


@dataclass(frozen=True, kw_only=True)
class Row:
    """A predicted and a measured step.

    Args:
        method: The method as text.
        layout: The layout, in words.
        ranks: The number of processes that were there.
        predicted: Seconds of a step.
        simulated: Seconds of a step by the simulator of many devices, from the same lines.
        measured: Seconds of a step.
        sent: Bytes of gradients that the first rank was predicted to send in a step.
        counted: Bytes that it sent.
    """

    method: str
    layout: str
    ranks: int
    predicted: float
    simulated: float
    measured: float
    sent: float
    counted: float

    @property
    def error(self) -> float:
        """How far the predicted time lies above the measured one, as a fraction of it."""
        return self.predicted / self.measured - 1


def names() -> dict[str, tuple[Case, int]]:
    """Every case with each of its batches, by name."""
    return {f"{name}-{batch}": (case, batch) for name, case in CASES.items() for batch in case.batches}


def hold(
    name: str,
    *,
    rounds: int,
    methods: Sequence[str] = METHODS,
    processes: Sequence[int] = PROCESSES,
    tick: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Predict and measure all methods of a case on every number of processes.

    Args:
        name: A key of :func:`names`.
        rounds: Rounds that count; every step is taken once a round.
        methods: The methods as text.
        processes: The numbers of processes.
        tick: Called :data:`STEPS` times for every number of processes.

    Returns:
        ``case``; ``rows``, a :class:`Row` for each method, layout and number of processes; ``memory``, predicted and
        measured bytes of each method on one process; and what :func:`summary` says about them.
    """
    if name not in names():
        raise UnknownNameError("case", name, names())
    case, batch = names()[name]
    surveys = [_surveyed(name, batch, rounds, methods, number, tick or (lambda: None)) for number in processes]
    rows = [row for survey in surveys for row in rows_of(survey, methods)]
    memory = _memory(case, batch, methods)
    return {"case": name, "rows": [asdict(row) for row in rows], "memory": memory, **summary(rows, memory)}


def _surveyed(
    name: str, batch: int, rounds: int, methods: Sequence[str], number: int, tick: Callable[[], None]
) -> Survey:
    told = 0

    def done(fraction: float) -> None:
        nonlocal told
        while told < min(int(fraction * STEPS), STEPS):
            told += 1
            tick()

    case = name.removesuffix(f"-{batch}")
    return record.from_json(ranks.run(WORKER, [case, str(batch), str(rounds), " ".join(methods)], number, tick=done))


def rows_of(survey: Survey, methods: Sequence[str]) -> list[Row]:
    """The predictions of one survey beside what it measured."""
    made = {text: make(text) for text in methods}
    predicted = {(p.method, p.layout): p for p in planning.predictions(survey, made)}
    return [_row(one, predicted[one.method, one.layout], survey) for one in survey.measured]


def _row(one: Measured, predicted: Prediction, survey: Survey) -> Row:
    rates = next(each for each in survey.rates if each.layout == one.layout)
    own = survey.own_of(one.method, one.layout.width)
    assert own is not None
    assert predicted.bytes is not None  # the cases have float32 weights
    return Row(
        method=one.method,
        layout=str(one.layout),
        ranks=survey.ranks,
        predicted=predicted.seconds,
        simulated=simulated.seconds(survey, rates, own),
        measured=one.seconds,
        sent=predicted.bytes,
        counted=one.bytes,
    )


def _memory(case: Case, batch: int, methods: Sequence[str]) -> dict[str, tuple[float, int]]:
    """Predicted and measured bytes of each method on one process."""
    subject, layout = case.subject(batch), Layout()
    lines = peak.passes(subject, sizes(batch, layout))
    made = {text: make(text) for text in methods}
    return {
        text: (peak.kept(subject, m).peak(lines, layout, batch), peak.measured(subject, m, layout))
        for text, m in made.items()
    }


def summary(rows: Sequence[Row], memory: dict[str, tuple[float, int]]) -> dict[str, Any]:
    """How well predictions hold.

    Returns:
        ``median``, the median of the errors of times without their signs; ``within``, the share of them up to 15 %;
        ``simulated``, the median of the errors of simulated times;
        ``exact``, whether all bytes are exact; ``memory_error``, the largest error of memory; ``chosen``, for each
        method the measured time of the layout that was predicted to be the fastest, in multiples of the fastest.
    """
    errors = sorted(abs(row.error) for row in rows)
    chosen = {}
    for method in dict.fromkeys(row.method for row in rows):
        own = [row for row in rows if row.method == method]
        fastest = min(row.measured for row in own)
        chosen[method] = min(own, key=lambda row: row.predicted).measured / fastest
    return {
        "median": median(errors),
        "simulated": median(abs(row.simulated / row.measured - 1) for row in rows),
        "within": sum(error <= 0.15 for error in errors) / len(errors),
        "exact": all(abs(row.sent - row.counted) < 0.5 for row in rows),
        "memory_error": max(abs(p / m - 1) for p, m in memory.values()),
        "chosen": chosen,
    }
