"""The study: all methods on all problems, where they settle, and how fast, as a record."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

import lowland
from lowland.bench.convergence.follow import (
    FIRST,
    Contestant,
    Trajectory,
    contestants,
    decade,
    floor,
    follow,
    slope,
    spread,
)
from lowland.bench.convergence.problems import PROBLEMS, Problem
from lowland.bench.convergence.theorem import SLACK, Guarantee, holds, limit
from lowland.core import checks
from lowland.core.errors import ArgumentError
from lowland.report.convergence.record import FloorRecord, ProblemRecord, RateRecord, Study, TraceRecord

HALVINGS = 4  # steps with which the methods settle on ||x||^2: lr, lr / 2, …
LONGEST = 20  # times the steps of the study: trainings that settle
LENGTHS = 6  # numbers of steps of the rates: steps, steps / 2, …
POINTS = 80  # points of a curve in the record
RATED = ("sam", "sampa:lam=0", "sampa:lam=0.2")  # the methods whose rates are fitted
LEAST = 100  # the fewest steps: shorter ones have no decade to fit


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a user chooses.

    Args:
        steps: Steps of a trajectory, >= 100.
        rho: The radius of all methods, > 0.
        lr: The step on all problems, > 0; None takes half of SAMPa's limit on each problem.
        seeds: Trajectories with mini-batches or random directions, >= 1.

    Raises:
        ArgumentError: An argument breaks its rule.
    """

    steps: int = 500
    rho: float = 0.1
    lr: float | None = None
    seeds: int = 3

    def __post_init__(self) -> None:
        checks.integer("steps", self.steps, LEAST, "500 take about a minute")
        checks.integer("seeds", self.seeds, 1, "3 is usual")
        for name in ("rho", "lr"):
            value = getattr(self, name)
            if value is not None:
                checks.at_least(name, value, 0, "0.1 is usual")
            if value == 0:
                raise ArgumentError(f"{name} must be > 0, but is {value!r}; with 0 there is nothing to compare")

    def step_of(self, problem: Problem) -> float:
        """The step on a problem: the user's, or half of the limit of SAMPa's theorem, ``min(1, 1 / L) / 2``."""
        return limit("sampa", problem.smoothness) / 2 if self.lr is None else self.lr


def study(setting: Setting, tick: Callable[[], None] | None = None) -> Study:
    """Run the study; the same setting gives the same record on one machine.

    Args:
        setting: The user's choices.
        tick: Called after each of the :func:`total` parts.
    """
    tick = tick or (lambda: None)
    methods = contestants(setting.rho)
    problems = [make() for make in PROBLEMS.values()]
    traces = []
    for problem in problems:
        for name, contestant in methods.items():
            traces.append(_trace(problem, name, contestant, setting))
            tick()
    floors: list[FloorRecord] = []
    for name in methods:
        floors += _floors(problems[0], name, setting)
        tick()
    rates: list[RateRecord] = []
    for problem in problems:
        rates += _rates(problem, setting)
        tick()
    return Study(
        steps=setting.steps,
        rho=setting.rho,
        lr=setting.lr,
        seeds=setting.seeds,
        problems=[_problem(problem, setting.step_of(problem)) for problem in problems],
        traces=traces,
        floors=floors,
        floor_slopes={name: _floor_slope(floors, name) for name in dict.fromkeys(f.method for f in floors)},
        rates=rates,
        rate_slopes={
            problem: {name: _rate_slope(rates, problem, name) for name in RATED}
            for problem in dict.fromkeys(rate.problem for rate in rates)
        },
        versions={"lowland": lowland.__version__, "torch": torch.__version__},
    )


def total(setting: Setting) -> int:
    """The number of calls of ``tick`` by :func:`study`."""
    methods = len(contestants(setting.rho))
    return len(PROBLEMS) * methods + methods + len(PROBLEMS)


def _problem(problem: Problem, lr: float) -> ProblemRecord:
    return ProblemRecord(
        name=problem.name,
        formula=problem.formula,
        dimension=len(problem.start),
        smoothness=problem.smoothness,
        lr=lr,
        limit=limit("sampa", problem.smoothness),
        noisy=problem.noisy,
    )


def _trace(problem: Problem, name: str, contestant: Contestant, setting: Setting) -> TraceRecord:
    lr = setting.step_of(problem)
    runs = setting.seeds if problem.noisy or contestant.random else 1
    paths = [follow(problem, contestant.method, lr, setting.steps, seed) for seed in range(runs)]
    reason, guarantee = _guarantee(problem, contestant, lr, setting.rho)
    shown = {"problem": problem.name, "method": name, "runs": runs, "reason": reason}
    if any(path.diverged for path in paths):
        empty = dict.fromkeys(("distance", "mean_square", "slope", "bound", "broken", "rises"))
        return TraceRecord(**shown, **empty, diverged=True, steps=[], distances=[], gaps=[])  # type: ignore[arg-type]
    places = [place - 1 for place in spread(1, setting.steps + 1, POINTS)]
    path, exact = paths[0], not problem.noisy
    mean_squares = [math.fsum(squares) / runs for squares in zip(*(p.squares for p in paths), strict=True)]
    return TraceRecord(
        **shown,  # type: ignore[arg-type]
        diverged=False,
        distance=_root_mean_square([p.settled for p in paths]),
        mean_square=math.fsum(p.mean_square for p in paths) / runs,
        slope=decade(mean_squares[:-1]),
        bound=guarantee.bound(path.values[0] - problem.minimum, setting.steps) if guarantee else None,
        broken=guarantee.broken(path.values, path.squares) if guarantee else None,
        rises=sum(map(_rises, paths)) / runs if exact else None,
        steps=[place + FIRST for place in places],
        distances=[_root_mean_square([p.distances[place] for p in paths]) for place in places],
        gaps=[math.fsum(p.values[place] - problem.minimum for p in paths) / runs for place in places] if exact else [],
    )


def _guarantee(problem: Problem, contestant: Contestant, lr: float, rho: float) -> tuple[str, Guarantee | None]:
    """The theorem, or the reason why there is none."""
    if contestant.kind is None:
        return "no theorem", None
    if problem.noisy:
        return "mini-batches: the theorem is about exact gradients", None
    if not holds(contestant.kind, problem.smoothness, lr):
        most = limit(contestant.kind, problem.smoothness)
        return f"conditions do not hold: the step {lr:.3g} must be below {most:.3g}", None
    return "", Guarantee(contestant.kind, problem.smoothness, lr, rho)


def _rises(path: Trajectory) -> float:
    pairs = list(zip(path.values, path.values[1:], strict=False))
    return sum(new > old + SLACK * max(1.0, abs(old)) for old, new in pairs) / len(pairs)


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(math.fsum(value * value for value in values) / len(values))


def _floors(problem: Problem, name: str, setting: Setting) -> list[FloorRecord]:
    """Where a method settles with smaller and smaller steps; each training is long enough to settle.

    Left out are steps that are too large for SAMPa's theorem, with some of which nothing settles, and steps so small
    that settling takes more than ``LONGEST`` times the steps of the study.
    """
    floors = []
    for halving in range(HALVINGS):
        lr = setting.step_of(problem) / 2**halving
        needed = 60 / (lr * problem.smoothness)  # plain descent shrinks by exp(-60)
        if not holds("sampa", problem.smoothness, lr) or needed > LONGEST * setting.steps:
            continue
        steps = max(setting.steps, math.ceil(needed))
        path = follow(problem, contestants(setting.rho)[name].method, lr, steps)
        if not path.diverged:
            closed = floor(name, lr, setting.rho)
            floors.append(FloorRecord(method=name, lr=lr, distance=path.settled, formula=closed))
    return floors


def _floor_slope(floors: Sequence[FloorRecord], name: str) -> float | None:
    """The exponent of lr in the distance; None where the method settles at the minimizer, to rounding."""
    own = [each for each in floors if each.method == name]
    if not own or min(each.distance for each in own) < SLACK:
        return None
    return slope([each.lr for each in own], [each.distance for each in own])


def _rates(problem: Problem, setting: Setting) -> list[RateRecord]:
    """Trainings whose step minimizes the bound for their length; empty where SAMPa's theorem says nothing."""
    most = setting.step_of(problem)
    if problem.noisy or not holds("sampa", problem.smoothness, most):
        return []
    widest = Guarantee("sampa", problem.smoothness, most, setting.rho)
    gap, rates = problem.at(problem.start)[0] - problem.minimum, []
    for halving in reversed(range(LENGTHS)):
        steps = max(2, setting.steps // 2**halving)
        lr = widest.step_for(gap, steps)
        guarantee = Guarantee("sampa", problem.smoothness, lr, setting.rho)
        for name in RATED:
            path = follow(problem, contestants(setting.rho)[name].method, lr, steps)
            bound = guarantee.bound(path.values[0] - problem.minimum, steps) if name == "sampa:lam=0" else None
            shown = {"problem": problem.name, "method": name, "steps": steps, "lr": lr}
            rates.append(RateRecord(**shown, mean_square=path.mean_square, bound=bound))
    return rates


def _rate_slope(rates: Sequence[RateRecord], problem: str, name: str) -> float | None:
    own = [rate for rate in rates if (rate.problem, rate.method) == (problem, name)]
    return slope([rate.steps for rate in own], [rate.mean_square for rate in own])
