"""What a sweep searches, and the refusals before anything is trained."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from lowland.core.errors import ArgumentError
from lowland.lab.config import RunConfig
from lowland.lab.studies.compare import run_name
from lowland.lab.studies.contestants import grid
from lowland.lab.studies.sweeps.ranges import Range
from lowland.lab.studies.sweeps.settings import SweepSettings
from lowland.lab.studies.sweeps.template import Parameter, Template
from lowland.lab.training.prepare import complete, loader_of

TRIALS = 20  # of each contestant, by default


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sweep searches, before anything is trained.

    Args:
        task: The task, with its ranges.
        contestants: The contestants, with their ranges.
        base: Makes the configuration that all runs share from the task's text.
        settings: How the sweep searches.
    """

    task: Template
    contestants: tuple[Template, ...]
    base: Callable[[str], RunConfig]
    settings: SweepSettings

    def config(self, contestant: Template, values: dict[str, str], seed: int) -> RunConfig:
        """The run of a contestant with these values."""
        return replace(grid(self.base(self.task.fill(values)), [contestant.fill(values)], [seed])[0], trial=True)

    def first(self, contestant: Template) -> RunConfig:
        """The run of a contestant with the first value of each field."""
        values = {p.name: p.values.ends[0] for p in self.parameters(contestant)}
        return self.config(contestant, values, self.settings.first_seed)

    def parameters(self, contestant: Template) -> tuple[Parameter, ...]:
        """The searched fields of a contestant: those of the task, then its own."""
        return (*self.task.parameters, *contestant.parameters)

    def total(self, contestant: Template) -> int:
        """The number of trials of a contestant."""
        settings = self.settings
        if settings.sampler == "grid":
            return math.prod(len(each.values.points(settings.points or 2)) for each in self.parameters(contestant))
        return TRIALS if settings.trials is None else settings.trials


def study_name(plan: Plan, contestant: Template) -> str:
    """The name of a contestant's study: the contestant, and a hash of everything that decides its trials."""
    settings = plan.settings
    decisive = [
        plan.task.text,
        contestant.text,
        run_name(plan.first(contestant)),
        settings.all_seeds,
        settings.sampler,
        settings.points,
        settings.sampler_seed,
        settings.pruner,
    ]
    digest = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:12]
    return f"{contestant.text[:80]} {digest}"


def check(plan: Plan) -> None:
    """Refuse a sweep that cannot be, before anything is trained or written.

    Raises:
        ArgumentError: There is no validation part, no range, a value that breaks its field's rule, or a number of
            trials that does not fit.
    """
    settings = plan.settings
    if not plan.contestants:
        raise ArgumentError('methods must name at least one method, but is empty; give "sam:rho=0.02..0.5:log"')
    texts = [each.text for each in plan.contestants]
    doubled = next((text for text in texts if texts.count(text) > 1), None)
    if doubled is not None:
        raise ArgumentError(f"methods must differ, but {doubled} is named twice; leave one out")
    for contestant in plan.contestants:
        parameters = plan.parameters(contestant)
        if not parameters:
            raise ArgumentError(
                f"every method of a sweep must have a range, so that all are tuned alike, but {contestant.text!r} has "
                f"none; write {contestant.text.partition('@')[0]}@lr=0.05..0.4:log, for example, or leave it out"
            )
        if settings.sampler == "grid":
            _check_grid(plan, contestant)
        _check_ends(plan, contestant)
    first = plan.first(plan.contestants[0])
    if "validation" not in loader_of(first).parts:
        raise ArgumentError(
            "a sweep needs a validation part, because the test part chooses nothing, but there is none; give "
            "validation, the fraction of the training part to hold out, such as 0.1"
        )


def _check_grid(plan: Plan, contestant: Template) -> None:
    settings, count = plan.settings, plan.total(contestant)
    if settings.points is None and any(isinstance(each.values, Range) for each in plan.parameters(contestant)):
        raise ArgumentError(
            f"a grid needs the number of points in each range, but {contestant.text!r} has a range; give grid, such as "
            "5, or write choices such as rho=0.05|0.1|0.2"
        )
    if settings.trials is not None and settings.trials != count:
        raise ArgumentError(
            f"trials must be the number of points of the grid, {count}, but is {settings.trials}; leave trials out, or "
            "choose another sampler"
        )


def _check_ends(plan: Plan, contestant: Template) -> None:
    """Make the method, the recipe and the task at the ends of each range, in each of two places of the others."""
    parameters = plan.parameters(contestant)
    for each in parameters:
        for value in each.values.ends:
            errors = []
            for end in (0, -1):
                others = {other.name: other.values.ends[end] for other in parameters}
                try:
                    config = plan.config(contestant, others | {each.name: value}, plan.settings.first_seed)
                    complete(config, loader_of(config))
                except ArgumentError as error:
                    errors.append(error)
            if len(errors) == 2:
                raise errors[0]
