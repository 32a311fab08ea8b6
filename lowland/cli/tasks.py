"""``lowland tasks``: lists the tasks, or shows one task in full."""

from __future__ import annotations

import dataclasses
import inspect
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from lowland.cli.docstrings import parse
from lowland.core.errors import LowlandError
from lowland.lab import fingerprint, names
from lowland.lab.contract import datasets_of, recipe_of
from lowland.lab.data.wrapped import dataset
from lowland.lab.identity import plain_fields
from lowland.lab.metric import Metric
from lowland.lab.recipe import Recipe
from lowland.lab.task import Task


@dataclass(kw_only=True)
class Tasks:
    """List the tasks, or show one: its fields, sizes, metrics, models, recipe and source.

    Args:
        name: A task, such as cifar10:noise=0.4 or my_task.py:Pose; by default all tasks are listed.
        model: The model whose recipe is shown; by default the task's first model.
        data: Folder of the data files; by default the environment variable LOWLAND_DATA.
    """

    name: Annotated[str | None, tyro.conf.Positional] = None
    model: str | None = None
    data: Path | None = None

    def run(self, console: Console, argv: Sequence[str]) -> int:
        """Print the list, or one task."""
        if self.name is None:
            for name, kind in names.tasks().items():
                _say(console, f"{name}: {parse(kind).title}")
            for name in names.OUTSIDE_TASK.installed():
                _say(console, f"{name}: from an installed package")
            _say(console, "Your own task: use my_task.py:Name or package.module:Name as its name.")
            return 0
        task = names.make(self.name)
        model = self.model or task.models[0]
        _say(console, f"{names.spell(task)}: {parse(type(task)).title}")
        for label, text in self._described(task, model).items():
            for number, line in enumerate(text.splitlines()):
                _say(console, _hanging(f"  {'' if number else label:9} {line}", console.width))
        return 0

    def _described(self, task: Task, model: str) -> dict[str, str]:
        explanations = parse(type(task)).fields
        fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(task) if dataclasses.is_dataclass(task) else ()
        changed = plain_fields(recipe_of(task, model))
        defaults = plain_fields(Recipe())
        recipe = ", ".join(f"{name}={value}" for name, value in changed.items() if value != defaults[name])
        return {
            "fields": "\n".join(
                f"{f.name}={getattr(task, f.name)} {explanations.get(f.name, '')}".strip() for f in fields
            )
            or "none",
            "sizes": self._sizes(task),
            "metrics": ", ".join(map(_metric, task.metrics)) or "the loss",
            "models": ", ".join(task.models),
            "recipe": f"{recipe or 'the default one'} (for {model})",
            "source": _source(task),
        }

    def _sizes(self, task: Task) -> str:
        root = self.data or os.environ.get("LOWLAND_DATA")
        try:
            parts = datasets_of(task, None if root is None else Path(root))
            return ", ".join(f"{len(dataset(name, part)):,} for {name}" for name, part in parts.items())
        except LowlandError as error:
            return f"unknown, {error}"


def _hanging(line: str, width: int) -> str:
    """The line, continued below the text behind its label where it is too long."""
    return textwrap.fill(line, width, subsequent_indent=" " * 14, break_long_words=False, break_on_hyphens=False)


def _metric(metric: Metric) -> str:
    notes = [f"in {metric.unit}"] * bool(metric.unit) + ["lower is better"] * (not metric.higher)
    return f"{metric.name} ({', '.join(notes)})" if notes else metric.name


def _source(task: Task) -> str:
    code = fingerprint.of(task, "task")
    return "lowland's own" if code is None else f"{inspect.getsourcefile(type(task))}, hash {code}"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)
