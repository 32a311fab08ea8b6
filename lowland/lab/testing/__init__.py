"""Checks of tasks: ``check_task`` runs all checks, ``task_checks`` gives them one by one."""

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

    No check compares the examples of the training part with those of the test part.

    Args:
        task: The task.
        model: The name of the model; None is the first of ``task.models``.
        root: The folder of data files; None is the environment variable ``LOWLAND_DATA``.

    Returns:
        Remarks on limitations of the task that are no faults, such as a loss that cannot be cut.

    Raises:
        ArgumentError: ``task`` is not a task.
        AssertionError: A check failed; the message lists all failed checks.
    """
    failed: dict[str, str] = {}
    for name, check in task_checks(task, model, root):
        try:
            check()
        except Exception as error:
            # Several checks can fail with the same message; it is listed once.
            failed.setdefault(f"{type(error).__name__}: {error}", name)
    if failed:
        listed = "\n  ".join(f"{name}: {message}" for message, name in failed.items())
        raise AssertionError(f"{type(task).__name__} breaks {len(failed)} promises:\n  {listed}")
    remark = trial_of(task, model, root).uncut()
    return [] if remark is None else [remark]


def task_checks(
    task: Task, model: str | None = None, root: str | Path | None = None
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the checks of :func:`check_task` as pairs of a name and a function without arguments."""
    trial = trial_of(task, model, root)
    for check in CHECKS:
        yield check.__name__.removeprefix("check_"), partial(check, trial)
