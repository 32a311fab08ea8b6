"""Diabetes: the split, R² and the root of the mean squared error by hand, and short trainings."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import on_ranks
from short_runs import METHODS, assert_resumes, config, trained
from sklearn.datasets import load_diabetes
from sklearn.metrics import r2_score

from lowland.core.errors import ArgumentError, MissingExtraError, UnknownNameError
from lowland.lab import names
from lowland.lab.tasks.diabetes import Diabetes, load
from lowland.lab.tasks.regression import R2, RMSE
from lowland.testing import check_task

TASK = Diabetes(width=8)


def test_the_task() -> None:
    assert check_task(TASK) == []
    assert names.make("diabetes:width=8") == TASK


def test_the_split_is_fixed_and_complete() -> None:
    train, test = load()
    assert (len(train), len(test)) == (342, 100)
    targets = load_diabetes().target
    both = torch.cat([train.targets, test.targets]).double() * train.unit
    shifted = both + (targets.mean() - float(both.mean()))
    np.testing.assert_allclose(np.sort(shifted.numpy()), np.sort(targets), rtol=1e-5)
    # The split must never move, or results of different versions could not be compared.
    assert [round(value) for value in shifted[:6].tolist()] == [88, 229, 215, 200, 54, 137]


def test_only_the_training_part_is_standardized() -> None:
    train, test = load()
    torch.testing.assert_close(train.inputs.mean(0), torch.zeros(10), rtol=0, atol=1e-5)
    torch.testing.assert_close(train.inputs.std(0, correction=0), torch.ones(10))
    assert float(train.targets.mean()) == pytest.approx(0, abs=1e-6)
    assert float(train.targets.std(correction=0)) == pytest.approx(1)
    assert float(test.targets.mean().abs()) > 1e-3
    assert test.unit == train.unit


def test_the_metrics_by_hand() -> None:
    """Targets 1, 2, 3, 6 and predictions 1, 3, 3, 4 in units of 10: squared errors sum to 5, deviations to 14."""
    values, targets = torch.tensor([1.0, 3.0, 3.0, 4.0]), torch.tensor([1.0, 2.0, 3.0, 6.0])
    batch = (None, targets, torch.full((4,), 10.0))
    assert R2.over([(values, batch)]) == pytest.approx(1 - 5 / 14)
    assert R2.over([(values, batch)]) == pytest.approx(r2_score(targets, values))
    assert RMSE.over([(values, batch)]) == pytest.approx(10 * math.sqrt(5 / 4))
    parts = [(values[i : i + 3], (None, targets[i : i + 3], batch[2][i : i + 3])) for i in (0, 3)]
    assert R2.over(parts) == pytest.approx(1 - 5 / 14)
    assert RMSE.over(parts) == pytest.approx(10 * math.sqrt(5 / 4))
    assert R2.higher
    assert not RMSE.higher


def test_equal_targets_explain_nothing() -> None:
    batch = (None, torch.ones(3), torch.ones(3))
    assert math.isnan(R2.over([(torch.zeros(3), batch)]))
    assert RMSE.over([(torch.zeros(3), batch)]) == 1.0


def test_the_metrics_of_the_mean() -> None:
    """The mean of the targets explains nothing, and its error is their standard deviation."""
    _, test = load()
    batch = test.batch(torch.arange(100), None)
    mean = torch.full((100,), float(test.targets.mean()))
    assert R2.over([(mean, batch)]) == pytest.approx(0, abs=1e-5)
    assert RMSE.over([(mean, batch)]) == pytest.approx(float(test.targets.std(correction=0)) * test.unit, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_methods_train_it(tmp_path: Path, method: str) -> None:
    end = trained(tmp_path, config(TASK, method))
    assert not end.get("diverged")
    assert end["test"]["r2"] < 1
    assert end["test"]["rmse"] > 0


def test_it_resumes(tmp_path: Path) -> None:
    assert_resumes(tmp_path, config(TASK, "looksam:k=3"))


@pytest.mark.slow
def test_two_ranks_train_as_one_process_does(tmp_path: Path) -> None:
    made = config(TASK, "sampa")
    alone = trained(tmp_path / "alone", made)
    ends = on_ranks(2, trained, tmp_path / "ranks", replace(made, mesh="data=2"))
    assert ends[0]["test"]["r2"] == pytest.approx(alone["test"]["r2"], rel=1e-5)
    assert ends[0]["test"]["rmse"] == pytest.approx(alone["test"]["rmse"], rel=1e-5)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentError, match="width must be an integer >= 1, but is 0"):
        Diabetes(width=0)
    with pytest.raises(UnknownNameError, match="unknown model 'resnet20'"):
        TASK.model("resnet20")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lowland\[lab\]'"):
        load()
