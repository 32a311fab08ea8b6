"""The best epoch and early stopping: the validation part chooses, and the test part nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lowland.core.errors import ArgumentError
from lowland.lab.budget import Budget
from lowland.lab.config import RunConfig
from lowland.lab.metric import Metric
from lowland.lab.training import judge
from lowland.lab.training.prepare import loader_of
from lowland.lab.training.run import train
from lowland.runs.reader import read_all

VALIDATION = [0.5, 0.7, 0.6, 0.7, 0.65, 0.9]  # accuracy after each epoch
TEST = [0.9, 0.1, 0.8, 0.99, 0.3, 0.2]


def epochs(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "run.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["kind"] == "epoch"]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have the parts judged as a list says."""

    def use(validation: list[float] = VALIDATION, test: list[float] = TEST) -> None:
        figures: Iterator[dict[str, float]] = (
            {"loss": 1.0, "accuracy": value}
            for chosen, tested in zip(validation, test, strict=True)
            for value in (tested, chosen, 0.0)  # test, validation, train
        )
        monkeypatch.setattr(judge, "evaluate", lambda *args, **options: next(figures))

    return use


@pytest.fixture
def six(config: RunConfig) -> RunConfig:
    """Six epochs of 5 steps, 10 of 51 examples kept for validation."""
    recipe = config.recipe.replace(epochs=6)
    return replace(config, method="plain", recipe=recipe, budget=Budget(limit=30), validation=0.2)


def test_the_best_epoch_is_that_of_validation(six: RunConfig, tmp_path: Path, scripted: Callable[..., None]) -> None:
    scripted()
    end = train(replace(six, select="best"), tmp_path / "a")
    assert end["best"]["epoch"] == 6
    assert end["best"]["test"]["accuracy"] == 0.2  # the worst but one
    assert end["test"]["accuracy"] == 0.2
    scripted([0.5, 0.7, 0.6, 0.7, 0.65, 0.6])
    end = train(replace(six, select="best"), tmp_path / "b")
    assert end["best"]["epoch"] == 2  # the first of two that are equally good
    assert (end["best"]["test"]["accuracy"], end["test"]["accuracy"]) == (0.1, 0.2)
    (record,) = read_all([tmp_path / "b"])
    assert record.score == 0.1
    assert record.last == 0.2


@pytest.mark.slow
def test_patience_counts_epochs_since_the_best_on_validation(
    six: RunConfig, tmp_path: Path, scripted: Callable[..., None]
) -> None:
    for patience, last in ((1, 3), (2, 4), (3, 5), (4, 6)):
        scripted()
        end = train(replace(six, patience=patience), tmp_path / str(patience))
        assert end["epochs"] == last
        assert end["best"]["epoch"] == (6 if last == 6 else 2)
    scripted([float("nan")] * 6)
    end = train(replace(six, patience=3), tmp_path / "never")
    assert end["epochs"] == 3  # not a number is no good epoch
    assert "best" not in end


def test_less_may_be_better(six: RunConfig, tmp_path: Path, scripted: Callable[..., None]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Errors(type(six.task)):  # type: ignore[misc]
        metrics = (Metric(name="accuracy", update=lambda p, b: p.new_ones(2), higher=False),)

    scripted()
    assert train(replace(six, task=Errors(), patience=5), tmp_path)["best"]["epoch"] == 1


def test_the_test_part_chooses_nothing(six: RunConfig, tmp_path: Path, scripted: Callable[..., None]) -> None:
    ends = []
    for number, test in enumerate((TEST, TEST[::-1], [float("nan")] * 6)):
        scripted(test=test)
        ends.append(train(replace(six, select="best", patience=3), tmp_path / str(number)))
    assert {end["epochs"] for end in ends} == {5}
    assert {end["best"]["epoch"] for end in ends} == {2}
    assert len({end["weights_sha256"] for end in ends}) == 1


def test_with_wrong_test_labels_the_same_is_trained_and_chosen(six: RunConfig, tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Wrong(type(six.task)):  # type: ignore[misc]
        def images(self, root: Path | None) -> Any:
            right = super().images(root)
            return replace(right, test_targets=(right.test_targets + 1) % 3)

    right = train(replace(six, select="best", patience=2), tmp_path / "right")
    wrong = train(replace(six, task=Wrong(), select="best", patience=2), tmp_path / "wrong")
    assert right["test"]["accuracy"] != wrong["test"]["accuracy"]
    assert right["weights_sha256"] == wrong["weights_sha256"]
    assert right["epochs"] == wrong["epochs"]
    for key in ("epoch", "validation"):
        assert right["best"][key] == wrong["best"][key]


def test_what_is_kept_for_validation_is_not_trained_on(six: RunConfig) -> None:
    loader, plain = loader_of(six), loader_of(replace(six, method="sam"))
    assert len(loader.index["validation"]) == 10
    together = sorted([*loader.index["validation"].tolist(), *loader.index["train"].tolist()])
    assert together == list(range(51))
    assert loader.index["validation"].tolist() == plain.index["validation"].tolist()  # the same for every method
    assert loader.index["validation"].tolist() != loader_of(replace(six, seed=1)).index["validation"].tolist()


@pytest.mark.slow
def test_a_resume_is_as_patient(
    six: RunConfig, tmp_path: Path, kill: Callable[[int], AbstractContextManager[None]]
) -> None:
    config = replace(six, patience=2, select="best", checkpoint_every=4)
    whole = train(config, tmp_path / "whole")
    with kill(8):
        train(config, tmp_path / "killed")
    again = train(config, tmp_path / "killed", resume=True)
    assert again["best"] == whole["best"]
    assert again["epochs"] == whole["epochs"]
    assert again["weights_sha256"] == whole["weights_sha256"]
    names = ("test", "validation", "train_loss")
    assert [[line[n] for n in names] for line in epochs(tmp_path / "killed")] == [
        [line[n] for n in names] for line in epochs(tmp_path / "whole")
    ]


@pytest.mark.parametrize(("changes", "name"), [({"select": "best"}, "select"), ({"patience": 2}, "patience")])
def test_without_a_validation_part_nothing_is_chosen(
    config: RunConfig, tmp_path: Path, changes: dict[str, Any], name: str
) -> None:
    with pytest.raises(
        ArgumentError, match=f"{name} needs a validation part, because no epoch is chosen on the test part"
    ):
        train(replace(config, **changes), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_both_parts_need_an_example(config: RunConfig, tmp_path: Path, share: float) -> None:
    with pytest.raises(ArgumentError, match=f"validation must leave both parts an example, but {share} of 51 keeps"):
        train(replace(config, validation=share), tmp_path)
