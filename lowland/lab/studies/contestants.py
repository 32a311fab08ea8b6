"""The contestants of a comparison: methods, some with their own recipe, such as ``plain@epochs=16``."""

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
DECAY = 0.999  # of the averaged weights of a plain contestant


@dataclass(frozen=True)
class Contestant:
    """A method with the recipe fields that it changes.

    Args:
        method: The method, as text or as an object.
        changes: Names and values of the changed recipe fields.
    """

    method: str | Method
    changes: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str | Method | Contestant) -> Contestant:
        """Parse ``method`` or ``method@field=value,field=value``, where the fields are recipe fields.

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
        if not at or {*"/:"} & {*rest}:  # the @ belongs to a path
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
        """The recipe of the contestant's runs: the shared recipe with the contestant's changes."""
        changes = dict(self.changes)
        method = self.method if isinstance(self.method, str) else _text(self.method)
        # With an optimizer and a learning rate of its own there is nothing to convert.
        own = shared if {"optimizer", "lr"} <= changes.keys() else method_recipe(shared, method)
        if changes.get("momentum") == 0 and own.optimizer == "sgd":
            changes.setdefault("nesterov", False)
        return own.replace(**changes) if changes else own

    def label(self, config: RunConfig) -> str:
        """The name of the contestant: the method's text, then ``@`` and the changed recipe fields."""
        own = ",".join(f"{name}={value}" for name, value in self.changes)
        return AT.join(filter(None, [config.method_text, own]))


def _text(method: Method) -> str:
    """The method as text; its key if it has no text, such as a method with a schedule."""
    try:
        return spell(method)
    except ArgumentError:
        return key_of(method)


def equal_cost(base: RunConfig) -> list[str]:
    """The plain contestants that a method must be better than to be worth its price, without plain training itself.

    They are plain training with twice the epochs (the gradients of SAM; only under a budget of steps, because other
    budgets are the same for all), with twice the learning rate, and with averaged weights.

    Args:
        base: The configuration that the runs share.
    """
    recipe = base.recipe
    twice = [f"plain{AT}epochs={2 * recipe.epochs}"] if base.budget.kind == "steps" else []
    averaged = [] if recipe.ema is not None else [f"plain{AT}ema={DECAY:g}"]
    return [*twice, f"plain{AT}lr={2 * recipe.lr:g}", *averaged]


def grid(base: RunConfig, methods: Iterable[str | Method | Contestant], seeds: int | Sequence[int]) -> list[RunConfig]:
    """All runs of a comparison: all contestants with the first seed, then all with the second seed, and so on.

    In this order a machine that becomes slower, or an interruption, affects all contestants alike.

    Args:
        base: The configuration that the runs share; its method, seed and contestant are replaced.
        methods: The contestants: methods as text or as objects; a text can change recipe fields after ``@``.
        seeds: The number of seeds, >= 1, which are then 0, 1, ...; or the seeds themselves.

    Raises:
        ArgumentError: There is no method; a method is listed twice; or a contestant changes epochs or batch size under
            a budget that is not in steps.
    """
    if isinstance(seeds, int):
        checks.integer("seeds", seeds, 1, "5 seeds make intervals that mean something")
    contestants = [Contestant.parse(m) for m in methods]
    if not contestants:
        raise ArgumentError("methods must name at least one method, but is empty; give plain and sam, for example")
    runs = [_run(base, contestant) for contestant in contestants]
    labels = [run.label for run in runs]
    duplicates = sorted({label for label in labels if labels.count(label) > 1})
    if duplicates:
        raise ArgumentError(f"methods must differ, but {duplicates[0]} is named twice; leave one out")
    return [replace(run, seed=seed) for seed in (range(seeds) if isinstance(seeds, int) else seeds) for run in runs]


def _run(base: RunConfig, contestant: Contestant) -> RunConfig:
    recipe = contestant.recipe(base.recipe)
    run = replace(base, method=contestant.method, recipe=recipe, budget=_budget(base, recipe, dict(contestant.changes)))
    return replace(run, contestant=contestant.label(run))


def _budget(base: RunConfig, recipe: Recipe, changes: Mapping[str, Any]) -> Budget:
    """The shared budget; if the contestant changes epochs or batch size, scaled to its own number of steps."""
    if not changes.keys() & {"epochs", "batch_size"}:
        return base.budget
    if base.budget.kind != "steps":
        raise ArgumentError(
            f"a recipe of its own can change epochs and batch_size only under a budget of steps, but the budget is "
            f"{base.budget.kind}, which is the same for all; leave them out"
        )
    ratio = recipe.epochs / base.recipe.epochs * (base.recipe.batch_size / recipe.batch_size)
    return replace(base.budget, limit=max(1.0, round(base.budget.limit * ratio)))
