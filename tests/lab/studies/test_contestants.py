from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import lowland
from lowland import schedule
from lowland.core.errors import ArgumentError, UnknownNameError
from lowland.lab.budget import Budget
from lowland.lab.config import RunConfig
from lowland.lab.recipe import Recipe
from lowland.lab.studies.contestants import Contestant, grid


def test_a_method_alone_shares_the_recipe(config: RunConfig) -> None:
    for text in ("sam", "sampa:rho=0.1,lam=0.2", lowland.SAM(rho=0.1), Contestant("plain")):
        (run,) = grid(config, [text], 1)
        assert (run.recipe, run.budget) == (config.recipe, config.budget)


def test_fields_of_a_recipe_of_its_own(config: RunConfig) -> None:
    (run,) = grid(config, ["plain@lr=0.2,ema=0.999,optimizer=adamw,clip=None"], 1)
    assert run.recipe == config.recipe.replace(lr=0.2, ema=0.999, optimizer="adamw", clip=None)
    assert run.budget == config.budget
    assert run.method == "plain"
    assert run.label == "plain@lr=0.2,ema=0.999,optimizer=adamw,clip=None"


def test_no_momentum_takes_nesterov_along(config: RunConfig) -> None:
    (run,) = grid(config, ["plain@momentum=0"], 1)
    assert (run.recipe.momentum, run.recipe.nesterov) == (0, False)
    with pytest.raises(ArgumentError, match="nesterov must be False where momentum is 0"):
        grid(config, ["plain@momentum=0,nesterov=True"], 1)


@pytest.mark.parametrize(("changes", "limit"), [
    ("epochs=4", 24), ("epochs=1", 6), ("batch_size=16", 6), ("batch_size=4", 24), ("epochs=4,batch_size=16", 12),
    ("batch_size=1000", 1),
])  # fmt: skip
def test_epochs_and_batches_of_its_own_change_the_steps(config: RunConfig, changes: str, limit: float) -> None:
    (run,) = grid(config, [f"sam@{changes}"], 1)  # the others: 12 steps, 2 epochs of batches of 8
    assert run.budget == Budget(limit=limit)


@pytest.mark.parametrize("kind", ["gradients", "seconds"])
def test_under_another_budget_they_are_refused(config: RunConfig, kind: Any) -> None:
    base = replace(config, budget=Budget(kind=kind, limit=10))
    with pytest.raises(ArgumentError, match=f"only under a budget of steps, but the budget is {kind}, which"):
        grid(base, ["plain@epochs=4"], 1)
    assert grid(base, ["plain@lr=0.2"], 1)[0].budget == base.budget


def test_adasam_brings_its_optimizer_also_as_an_object(config: RunConfig) -> None:
    expected = config.recipe.replace(
        optimizer="amsgrad", lr=config.recipe.lr / 20, weight_decay=config.recipe.weight_decay / 10
    )
    for method in ("adasam", lowland.AdaSAM(), lowland.Late(start=3, inner=lowland.AdaSAM())):
        assert grid(config, [method], 1)[0].recipe == expected
    assert grid(config, ["adasam@lr=0.3"], 1)[0].recipe == expected.replace(lr=0.3)


def test_seeds_are_a_number_or_a_list_and_contestants_take_turns(config: RunConfig) -> None:
    runs = grid(config, ["plain", "plain@ema=0.9", "sam"], [4, 2])
    labels = ["plain", "plain@ema=0.9", "sam"]
    assert [(run.seed, run.label) for run in runs] == [(seed, label) for seed in (4, 2) for label in labels]
    assert [run.seed for run in grid(config, ["plain"], 3)] == [0, 1, 2]


def test_what_a_contestant_is_called(config: RunConfig) -> None:
    drawn = lowland.SAM(rho=schedule.linear(0.1, 0.0, 10))
    labels = [run.label for run in grid(config, [lowland.SAM(rho=0.1), drawn, "sam:rho=0.2@lr=0.1"], 1)]
    assert labels == ["sam:rho=0.1", repr(drawn), "sam:rho=0.2@lr=0.1"]


def test_a_path_may_hold_the_sign() -> None:
    for text in ("me@work/own.py:Own", "me@work/own.py:Own:theta=0.4", "a@b/own.py:Own"):
        assert Contestant.parse(text) == Contestant(text)
    assert Contestant.parse("me@work/own.py:Own@lr=0.1") == Contestant("me@work/own.py:Own", (("lr", 0.1),))


@pytest.mark.parametrize(("methods", "kind", "rule"), [
    ([], ArgumentError, "methods must name at least one method, but is empty"),
    (["plain@"], ArgumentError, "'plain@' must name fields of the recipe after @, such as plain@epochs=16"),
    (["plain@epochs"], ArgumentError, "fields after @ must be written name=value, but one is 'epochs' in"),
    (["plain@epoch=3"], UnknownNameError, "unknown recipe field 'epoch': did you mean 'epochs'"),
    (["plain@lr=-1"], ArgumentError, "lr must be a number > 0, but is -1"),
    (["plain@ema=1"], ArgumentError, r"ema must be in \(0, 1\), but is 1"),
    (["sam", "sam"], ArgumentError, "methods must differ, but sam is named twice"),
    (["plain@lr=0.2", "plain@lr=0.2"], ArgumentError, "methods must differ, but plain@lr=0.2 is named twice"),
    ([lowland.SAM], ArgumentError, 'methods must be texts such as "sam:rho=0.1", or methods, but one is <class'),
    ([3], ArgumentError, "or methods, but one is 3"),
])  # fmt: skip
def test_refused(config: RunConfig, methods: list[Any], kind: type[Exception], rule: str) -> None:
    with pytest.raises(kind, match=rule):
        grid(config, methods, 1)


def test_seeds_must_be_some(config: RunConfig) -> None:
    with pytest.raises(ArgumentError, match="seeds must be an integer >= 1, but is 0"):
        grid(config, ["plain"], 0)


def test_a_contestant_is_a_value() -> None:
    assert Contestant.parse("plain@lr=0.1") == Contestant("plain", (("lr", 0.1),))
    assert Contestant("plain").recipe(Recipe()) == Recipe()
