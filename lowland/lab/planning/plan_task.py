"""Plans the training of a task: which method, in which layout, is fastest on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lowland.core.errors import ArgumentError, LowlandError
from lowland.lab import names
from lowland.lab.budget import Budget
from lowland.lab.config import RunConfig
from lowland.lab.contract import recipe_of
from lowland.lab.data.loader import Loader
from lowland.lab.training.planned import subject_of
from lowland.lab.training.prepare import complete, loader_of
from lowland.lab.training.trainer import settings
from lowland.methods.base import Method
from lowland.parallel import ranks
from lowland.planner import fits, record
from lowland.planner import planning as planner
from lowland.planner import ranks as started
from lowland.planner.free import room
from lowland.planner.planning import Plan
from lowland.planner.subject import Subject
from lowland.planner.suitable import suitable

WORKER = "lowland.lab.planning.worker"


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a training is made from, in this process and in those that are started.

    Args:
        task: The task as text.
        model: The model as text; None is the task's first model.
        recipe: The recipe's fields that differ from the task's.
        data: The folder of the data files; None is the environment variable ``LOWLAND_DATA``.
        device: ``cpu``, ``cuda``, or ``auto`` for a GPU if there is one.
    """

    task: str = "digits"
    model: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None
    device: str = "auto"

    def config(self) -> RunConfig:
        """The configuration of a plain run."""
        task = names.make(self.task)
        model = self.model or task.models[0]
        return RunConfig(
            task=task,
            model=model,
            method="plain",
            seed=0,
            recipe=recipe_of(task, model).replace(**self.recipe),
            budget=Budget(kind="steps", limit=1.0),
            data=None if self.data is None else Path(self.data),
            device=self.device,
        )


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A task's training, ready to be planned.

    Args:
        subject: Model, optimizer, loss and a batch, as the training has them.
        methods: The methods by their text.
        left_out: Methods that cannot be made for this task, each with the reason.
    """

    subject: Subject
    methods: Mapping[str, Method]
    left_out: Mapping[str, str]


def prepared(config: RunConfig, methods: Sequence[str]) -> Planned:
    """Make model, optimizer and the first batch of a run, and the methods with the task's defaults.

    Args:
        config: The run; its method is not used.
        methods: The methods as text; "all" means every method of the catalog.
    """
    loader = loader_of(config)
    made, reasons = {}, {}
    for text in expanded(methods):
        try:
            made[text] = _made(config, loader, text)
        except LowlandError as error:
            if text in methods:
                raise
            reasons[text] = str(error)
    return Planned(subject=subject_of(config, loader), methods=made, left_out=reasons)


def expanded(methods: Sequence[str]) -> list[str]:
    """The methods, each once, with "all" replaced by the catalog."""
    return list(dict.fromkeys(t for text in methods for t in (planner.catalog() if text == "all" else [text])))


def _made(config: RunConfig, loader: Loader, text: str) -> Method:
    return complete(replace(config, method=text), loader)


def processes(wanted: Sequence[int] | None, device: torch.device) -> list[int]:
    """The numbers of processes that are measured.

    Args:
        wanted: Numbers, each >= 1; None means 1, 2, 4, … up to the number of GPUs or of CPU cores.
        device: The device of the training.
    """
    if wanted is not None:
        if not wanted or any(type(k) is not int or k < 1 for k in wanted):
            raise ArgumentError(f"processes must be numbers >= 1, but are {list(wanted)}; write --processes 1 2")
        return sorted(set(wanted))
    most = torch.cuda.device_count() if device.type == "cuda" else cores()
    return [2**i for i in range(most.bit_length()) if 2**i <= most]


def cores() -> int:
    """The CPU cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def plan_task(
    training: Training,
    methods: Sequence[str],
    wanted: Sequence[int] | None = None,
    *,
    seconds: float,
    threads: int | None = None,
    tick: Callable[[str, float], None] | None = None,
) -> Plan:
    """Plan a training.

    Under torchrun the ranks of this process group are measured, and all ranks call this alike. Otherwise torchrun
    starts each number of processes on this machine, one after the other.

    Args:
        training: The training.
        methods: The methods as text; "all" means every method of the catalog.
        wanted: The numbers of processes; None means those of :func:`processes` that can divide a step.
        seconds: About how long the measuring may take, > 0.
        threads: CPU threads of each process; None divides the cores.
        tick: Called with what is done now, and the fraction of it that is done.
    """
    config, say = training.config(), tick or (lambda text, fraction: None)
    numbers = processes(wanted, config.on())
    with settings(config):
        ready = prepared(config, methods)
        shown, reasons = planner.fitting(ready.subject, ready.methods)
        reasons = {**ready.left_out, **reasons}
        if ranks()[1] > 1:
            found = planner.of_subject(ready.subject, shown, seconds=seconds, tick=lambda f: say("ranks", f))
            return replace(found, left_out={**reasons, **found.left_out})
        numbers = dividing(numbers, ready.subject, shown, all_of_them=wanted is not None)
        say("memory", 0.0)
        memories = fits.memory(ready.subject, shown)
    surveys = []
    for number in numbers:
        given = {"training": asdict(training), "methods": list(shown), "seconds": seconds / len(numbers)}

        def done(fraction: float, number: int = number) -> None:
            say(f"{number} process{'es' if number > 1 else ''}", fraction)

        each = threads or max(cores() // number, 1)
        surveys.append(record.from_json(started.run(WORKER, [json.dumps(given)], number, threads=each, tick=done)))
    device = config.on()
    notes, space = ready.subject.notes, room(device)
    return planner.joined(surveys, memories, shown, left_out=reasons, room=space, device=device, notes=notes)


def dividing(
    numbers: Sequence[int], subject: Subject, methods: Mapping[str, Method], *, all_of_them: bool = False
) -> list[int]:
    """The numbers of processes that can divide a step.

    Args:
        numbers: The numbers of processes.
        subject: The training.
        methods: The methods by their text.
        all_of_them: Refuse a number that can divide nothing, in place of leaving it out.
    """
    kept = []
    for number in numbers:
        try:
            suitable(number, subject, methods)
        except ArgumentError:
            if all_of_them:
                raise
        else:
            kept.append(number)
    return kept
