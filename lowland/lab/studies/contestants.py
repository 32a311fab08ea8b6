"""Who takes part in a comparison: methods, each maybe with a recipe of its own, as ``plain@epochs=16``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lowland.core import checks
from lowland.core.errors import ArgumentError
from lowland.core.outside import value_of
from lowland.lab.budget import Budget
from lowland.lab.config import RunConfig
from lowland.lab.recipe import Recipe, method_recipe
from lowland.methods import key_of, spell
from lowland.methods.base import Method

AT = "@"


@dataclass(frozen=True)
class Contestant:
    """A method, and where its recipe differs from the others'.

    Args:
        method: As text, or a method.
        changes: Fields of the recipe with its own values.
    """

    method: str | Method
    changes: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str | Method | Contestant) -> Contestant:
        """From ``method``, or ``method@field=value,field=value`` with fields of the recipe.

        Raises:
            ArgumentError: The text is malformed.
        """
        if isinstance(text, Contestant):
            return text
        if isinstance(text, Method):
            return cls(text)
        if not isinstance(text, str):
            raise ArgumentError(f'methods must be texts such as "sam:rho=0.1", or methods, but one is {text!r}')
        method, at, rest = text.rpartition(AT)
        if not at or {*"/:"} & {*rest}:  # a path may hold the sign, too
            return cls(text)
        changes = []
        for part in filter(None, rest.split(",")):
            name, equals, value = part.partition("=")
            if not equals:
                raise ArgumentError(f"fields after {AT} must be written name=value, but one is {part!r} in {text!r}")
            changes.append((name, value_of(value)))
        if not changes:
            raise ArgumentError(f"{text!r} must name fields of the recipe after {AT}, such as plain{AT}epochs=16")
        return cls(method, tuple(changes))

    def recipe(self, shared: Recipe) -> Recipe:
        """The recipe of its runs."""
        own = method_recipe(shared, self.method if isinstance(self.method, str) else _text(self.method))
        changes = dict(self.changes)
        if changes.get("momentum") == 0 and own.optimizer == "sgd":
            changes.setdefault("nesterov", False)
        return own.replace(**changes) if changes else own

    def label(self, config: RunConfig) -> str:
        """What it is called: the method's text, and what it has of its own."""
        own = ",".join(f"{name}={value}" for name, value in self.changes)
        return AT.join(filter(None, [config.method_text, own]))


def _text(method: Method) -> str:
    """The method as text; of one that has none, such as one with a schedule, its name."""
    try:
        return spell(method)
    except ArgumentError:
        return key_of(method)


def grid(base: RunConfig, methods: Iterable[str | Method | Contestant], seeds: int | Sequence[int]) -> list[RunConfig]:
    """All runs of a comparison, the contestants of one seed after the other.

    So they take turns: a machine that grows slower, or an interrupt, hits all alike.

    Args:
        base: What the runs share; its method, seed and contestant are replaced.
        methods: Contestants: methods, as text or as they are, with fields of a recipe of their own after ``@``.
        seeds: How many, >= 1: 0, 1, ...; or which.

    Raises:
        ArgumentError: There is none, or one twice; or a recipe's own epochs under another budget than steps.
    """
    if isinstance(seeds, int):
        checks.integer("seeds", seeds, 1, "5 seeds make intervals that mean something")
    contestants = [Contestant.parse(m) for m in methods]
    if not contestants:
        raise ArgumentError("methods must name at least one method, but is empty; give plain and sam, for example")
    runs = [_run(base, contestant) for contestant in contestants]
    labels = [run.label for run in runs]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ArgumentError(f"methods must differ, but {twice[0]} is named twice; leave one out")
    return [replace(run, seed=seed) for seed in (range(seeds) if isinstance(seeds, int) else seeds) for run in runs]


def _run(base: RunConfig, contestant: Contestant) -> RunConfig:
    recipe = contestant.recipe(base.recipe)
    run = replace(base, method=contestant.method, recipe=recipe, budget=_budget(base, recipe, dict(contestant.changes)))
    return replace(run, contestant=contestant.label(run))


def _budget(base: RunConfig, recipe: Recipe, changes: Mapping[str, Any]) -> Budget:
    """The shared budget, or in proportion to epochs and batches of its own."""
    if not changes.keys() & {"epochs", "batch_size"}:
        return base.budget
    if base.budget.kind != "steps":
        raise ArgumentError(
            f"a recipe of its own can change epochs and batch_size only under a budget of steps, but the budget is "
            f"{base.budget.kind}, which is the same for all; leave them out"
        )
    ratio = recipe.epochs / base.recipe.epochs * (base.recipe.batch_size / recipe.batch_size)
    return replace(base.budget, limit=max(1.0, round(base.budget.limit * ratio)))
