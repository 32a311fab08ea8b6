"""What a task's methods return, checked where it is used first, because a task may be the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowland.core.errors import ArgumentError
from lowland.lab.recipe import Recipe
from lowland.lab.task import Task


def datasets_of(task: Task, root: Path | None) -> Mapping[str, Any]:
    """The parts of a task's data.

    Raises:
        ArgumentError: They are no mapping.
    """
    parts = task.datasets(root)
    if not isinstance(parts, Mapping):
        raise _other(task, "datasets()", "a dictionary of the parts train and test", parts, "{'train': …, 'test': …}")
    return parts


def recipe_of(task: Task, model: str) -> Recipe:
    """The recipe of a task's model.

    Raises:
        ArgumentError: It is no recipe.
    """
    recipe = task.recipe(model)
    if not isinstance(recipe, Recipe):
        raise _other(task, f"recipe({model!r})", "a lowland.lab.Recipe", recipe, "Recipe(lr=…, epochs=…)")
    return recipe


def check_metrics(task: Task) -> None:
    """Refuse two metrics of one name, of which a run would keep one.

    Raises:
        ArgumentError: Two metrics have the same name.
    """
    doubles = duplicates(task)
    if doubles:
        raise ArgumentError(
            f"metrics of {type(task).__name__} must have different names, but two are {doubles[0]!r}; rename one"
        )


def duplicates(task: Task) -> list[str]:
    """The names that several metrics of a task have."""
    names = [metric.name for metric in task.metrics]
    return sorted({name for name in names if names.count(name) > 1})


def _other(task: Task, call: str, rule: str, value: Any, remedy: str) -> ArgumentError:
    """The error that a task's method returns another type."""
    returned = f"but returned a {type(value).__name__}"
    return ArgumentError(f"{call} of {type(task).__name__} must return {rule}, {returned}; return {remedy}")
