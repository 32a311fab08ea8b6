"""Whether plain training with twice the steps is the better buy, from runs that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_plans import ONE, made, prediction
from made_runs import WriteRun

from lowland.report.plans.buys import buys
from lowland.runs.reader import read_all

RECIPE = {"optimizer": "sgd", "lr": 0.1, "epochs": 8}
SEEDS = range(4)


def plan(sam: float = 9.0, **changes: Any) -> Any:
    predictions = [prediction("plain", ONE, 4.0, error=0.01), prediction("sam", ONE, sam, error=0.01)]
    return made(predictions=predictions, **changes)


@pytest.fixture
def comparison(write_run: WriteRun, tmp_path: Path) -> Any:
    """Runs of plain, of plain with twice the epochs, and of SAM, whose accuracies differ by ``gain`` points."""

    def written(gain: float | None, *, seeds: int = 4, double: str = "plain@epochs=16", epochs: int = 8) -> list[Any]:
        for seed in range(seeds):
            noise = 0.0005 * (-1) ** seed
            write_run("plain", seed, accuracy=0.9, epochs=epochs, recipe=RECIPE)
            if double:
                twice = RECIPE | {"epochs": 16} | ({"lr": 0.2} if "lr" in double else {})
                write_run(double, seed, accuracy=0.92 - noise, epochs=2 * epochs, recipe=twice)
            if gain is not None:
                write_run("sam", seed, accuracy=0.92 + gain / 100 + noise, epochs=epochs, recipe=RECIPE)
        return read_all([tmp_path])

    return written


def test_a_method_that_is_better_and_not_dearer(comparison: Any) -> None:
    lead, sam = buys(comparison(1.0), plan(sam=7.0))
    assert "plain@epochs=16 has twice the steps of plain and scores 92.00 ± " in lead
    # 8 epochs of 22 steps
    assert "Predicted: 176 steps × 7.00 ms = 1.2 s, against 352 steps × 4.00 ms = 1.4 s." in sam
    assert "sam scores 93.00 ± " in sam
    assert "1.00 ± " in sam
    assert sam.endswith("sam scores better: sam is the better buy.")


def test_a_method_that_is_better_and_dearer(comparison: Any) -> None:
    sam = buys(comparison(1.0), plan(sam=12.0))[1]
    assert sam.endswith("sam scores better, but takes 1.50 times as long: which one is the better buy is your choice.")


def test_plain_training_that_is_better(comparison: Any) -> None:
    records = comparison(-1.0)
    sam = buys(records, plan(sam=9.0))[1]
    assert "points (p " in sam
    assert "worse than plain@epochs=16" in sam
    assert sam.endswith("plain@epochs=16 scores better: plain@epochs=16 is the better buy.")
    assert "but takes 1.14 times as long" in buys(records, plan(sam=7.0))[1]


def test_no_difference_is_shown(comparison: Any) -> None:
    records = comparison(0.0)
    assert buys(records, plan(sam=9.0))[1].endswith("plain@epochs=16 is the better buy, being cheaper.")
    assert buys(records, plan(sam=6.0))[1].endswith("sam is the better buy, being cheaper.")
    assert buys(records, plan(sam=8.0))[1].endswith("differ by less than their error: neither is the better buy.")


@pytest.mark.parametrize("changes", [{"task": "moons"}, {"model": "convnet"}])
def test_a_plan_of_another_training(comparison: Any, changes: dict[str, Any]) -> None:
    assert "is not known: the plan is about another training or method" in buys(comparison(1.0), plan(**changes))[1]


def test_one_seed_decides_nothing(comparison: Any) -> None:
    assert buys(comparison(1.0, seeds=1), plan())[1].endswith("Not known: one seed decides nothing.")


@pytest.mark.parametrize("double", ["", "plain@epochs=16,lr=0.2"])
def test_without_plain_training_of_twice_the_steps(comparison: Any, double: str) -> None:
    (sentence,) = buys(comparison(1.0, double=double), plan())
    assert "not known, because no finished plain training has twice the steps of plain" in sentence
    assert sentence.endswith("add the method equal-cost to lowland compare.")


def test_without_methods(comparison: Any) -> None:
    (sentence,) = buys(comparison(None), plan())
    assert sentence.endswith("There is no method to compare it with.")


def test_trainings_that_are_too_short(comparison: Any) -> None:
    sam = buys(comparison(1.0, epochs=4), plan())[1]
    assert sam == "sam: not known, because 4 epochs are too short to compare methods; take 8 or more."


def test_no_runs() -> None:
    assert buys([], plan()) == []
