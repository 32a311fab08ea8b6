"""The promises of tasks: ``check_task`` runs all checks, ``task_checks`` gives them one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from lowland.lab.task import Task
from lowland.lab.testing.checks import CHECKS
from lowland.lab.testing.trial import Trial, trial_of

__all__ = ["CHECKS", "Trial", "check_task", "task_checks", "trial_of"]


def check_task(task: Task, model: str | None = None, root: str | Path | None = None) -> list[str]:
    """Run all checks on a task: data, model, loss, metrics, text, and one step of its recipe, on the CPU.

    Whether train and test share examples is not checked.

    Args:
        task: The task.
        model: What ``task.model`` gets; None is the first of ``task.models``.
        root: Folder of data files; None is the environment variable ``LOWLAND_DATA``.

    Returns:
        Sentences on what the task allows less than others, such as a loss that cannot be cut. They are no faults.

    Raises:
        ArgumentError: It is no task.
        AssertionError: It breaks a promise; the message names all that it breaks.
    """
    broken: dict[str, str] = {}
    for name, check in task_checks(task, model, root):
        try:
            check()
        except Exception as error:
            # What one part lacks, several checks stumble over.
            broken.setdefault(f"{type(error).__name__}: {error}", name)
    if broken:
        listed = "\n  ".join(f"{name}: {message}" for message, name in broken.items())
        raise AssertionError(f"{type(task).__name__} breaks {len(broken)} promises:\n  {listed}")
    remark = trial_of(task, model, root).uncut()
    return [] if remark is None else [remark]


def task_checks(
    task: Task, model: str | None = None, root: str | Path | None = None
) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of :func:`check_task` one by one, as pairs of a name and a function without arguments."""
    trial = trial_of(task, model, root)
    for check in CHECKS:
        yield check.__name__.removeprefix("check_"), partial(check, trial)
