"""The record of a convergence study: what the page is drawn from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from lowland.runs.contents import contents, damaged, exact

COMMAND, VERSION = "lowland convergence", 1
SLACK = 1e-12  # rounding of a mean, relative: for plain descent on ||x||^2 the bound is an equation


@dataclass(frozen=True, kw_only=True)
class ProblemRecord:
    """A problem and its step.

    Attributes:
        name: Its name.
        formula: The loss in words.
        dimension: The number of weights.
        smoothness: L.
        lr: The step.
        limit: The step from which on SAMPa's theorem says nothing.
        noisy: Whether gradients are of mini-batches.
    """

    name: str
    formula: str
    dimension: int
    smoothness: float
    lr: float
    limit: float
    noisy: bool

    @property
    def covered(self) -> bool:
        """Whether the conditions of SAMPa's theorem hold."""
        return not self.noisy and self.lr < self.limit


@dataclass(frozen=True, kw_only=True)
class TraceRecord:
    """One method on one problem. The first step is not counted; of several seeds, means are meant.

    Attributes:
        problem: The problem's name.
        method: The method's name.
        runs: The number of trajectories.
        diverged: Whether a trajectory went far away; what follows is None or empty then.
        distance: The root mean square of the distance to the minimizer over the last quarter of the steps.
        mean_square: The mean of the squared gradient norm over all steps.
        slope: The exponent of T in the mean of the squared gradient norm over T steps, fitted over the last decade.
        bound: The theorem's bound of ``mean_square``; None without a theorem.
        broken: The steps that break the theorem's inequality; None without a theorem.
        rises: The share of the steps in which the Lyapunov function rises, in [0, 1]; None with mini-batches.
        reason: Why there is no bound; empty if there is one.
        steps: The steps of the following lists.
        distances: The distance to the minimizer at these steps.
        gaps: The Lyapunov function minus the minimum at these steps; empty with mini-batches.
    """

    problem: str
    method: str
    runs: int
    diverged: bool
    distance: float | None
    mean_square: float | None
    slope: float | None
    bound: float | None
    broken: int | None
    rises: float | None
    reason: str
    steps: list[int]
    distances: list[float]
    gaps: list[float]

    @property
    def holds(self) -> bool | None:
        """Whether the bound and the inequality of every step hold; None without a theorem."""
        if self.bound is None or self.mean_square is None:
            return None
        return self.mean_square <= (1 + SLACK) * self.bound and self.broken == 0


@dataclass(frozen=True, kw_only=True)
class FloorRecord:
    """Where a method settles on ``||x||^2`` with one step.

    Attributes:
        method: The method's name.
        lr: The step.
        distance: The root mean square of the distance to the minimizer over the last quarter of the steps.
        formula: The same by its closed form; None without one.
    """

    method: str
    lr: float
    distance: float
    formula: float | None


@dataclass(frozen=True, kw_only=True)
class RateRecord:
    """The mean squared gradient norm of a training of T steps whose step is chosen for T.

    Attributes:
        problem: The problem's name.
        method: The method's name.
        steps: T.
        lr: The step.
        mean_square: The mean of the squared gradient norm.
        bound: The bound of SAMPa's theorem; None for other methods.
    """

    problem: str
    method: str
    steps: int
    lr: float
    mean_square: float
    bound: float | None


@dataclass(frozen=True, kw_only=True)
class Study:
    """A whole study.

    Attributes:
        steps: Steps of a trajectory.
        rho: The radius.
        lr: The step that the user set; None for the default.
        seeds: Trajectories with mini-batches or random directions.
        problems: The problems.
        traces: The methods on the problems.
        floors: Where they settle on ``||x||^2``.
        floor_slopes: The exponent of the step in this distance, by method; None where it is zero to rounding.
        rates: Trainings with a step chosen for their length.
        rate_slopes: The exponent of T by problem and method.
        versions: Versions of lowland and torch.
    """

    steps: int
    rho: float
    lr: float | None
    seeds: int
    problems: list[ProblemRecord]
    traces: list[TraceRecord]
    floors: list[FloorRecord]
    floor_slopes: dict[str, float | None]
    rates: list[RateRecord]
    rate_slopes: dict[str, dict[str, float | None]]
    versions: dict[str, str]

    def of(self, problem: str) -> list[TraceRecord]:
        """The traces of one problem."""
        return [trace for trace in self.traces if trace.problem == problem]

    def text(self) -> str:
        """The record as JSON; equal studies have equal texts."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1, allow_nan=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record.

        Raises:
            ArgumentError: The file cannot be read.
            StateError: It is no record of this version.
        """
        entries = contents(path, COMMAND, VERSION)
        del entries["version"]
        kinds = {"problems": ProblemRecord, "traces": TraceRecord, "floors": FloorRecord, "rates": RateRecord}
        try:
            parts = {name: [kind(**exact(kind, entry)) for entry in entries[name]] for name, kind in kinds.items()}
            return cls(**exact(cls, entries | parts))
        except (KeyError, TypeError) as error:
            raise damaged(path, COMMAND, error) from None
