"""How a sweep searches: the number of trials, the seeds, the sampler and the pruner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lowland.core import checks
from lowland.core.errors import ArgumentError

Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["none", "median", "hyperband"]
COMPARED = 5  # the seeds of the comparison that follows a sweep: 0 to 4


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """How a sweep searches.

    Args:
        trials: The number of trials of each contestant over all processes, >= 1; None is the number of points of a
            grid, and 20 for another sampler.
        seeds: The number of seeds of each trial, >= 1; the trial's value is the mean over them.
        first_seed: The first of these seeds, >= 5, because the comparison that follows uses the seeds 0 to 4.
        sampler: ``tpe``, ``random``, or ``grid``.
        points: The number of points of a grid in each range, >= 2.
        sampler_seed: The seed of the sampler, >= 0.
        pruner: ``median`` or ``hyperband`` ends trials that are worse after an epoch than others; ``none`` ends none.
        storage: The URL of a database of trials; None is a file in the folder of the runs.

    Raises:
        ArgumentError: A value breaks its rule.
    """

    trials: int | None = None
    seeds: int = 1
    first_seed: int = 1000
    sampler: Sampler = "tpe"
    points: int | None = None
    sampler_seed: int = 0
    pruner: Pruner = "none"
    storage: str | None = None

    def __post_init__(self) -> None:
        if self.trials is not None:
            checks.integer("trials", self.trials, 1, "20 trials search two fields coarsely")
        checks.integer("seeds", self.seeds, 1, "more than one seed tells luck from a better value")
        checks.integer(
            "first_seed", self.first_seed, COMPARED, f"the comparison that follows uses the seeds 0 to {COMPARED - 1}"
        )
        checks.one_of("sampler", self.sampler, ("tpe", "random", "grid"))
        checks.integer("sampler_seed", self.sampler_seed, 0, "another seed draws other trials")
        checks.one_of("pruner", self.pruner, ("none", "median", "hyperband"))
        if self.points is not None:
            checks.integer("grid", self.points, 2, "both ends of a range are points")
            if self.sampler != "grid":
                raise ArgumentError(
                    f"grid needs the sampler grid, but the sampler is {self.sampler}; give --sampler grid, or leave "
                    "--grid out"
                )

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds of each trial."""
        return tuple(range(self.first_seed, self.first_seed + self.seeds))
