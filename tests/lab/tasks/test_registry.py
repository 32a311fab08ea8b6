from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowland.core.errors import ArgumentError, DataError, UnknownNameError
from lowland.lab.tasks import TASKS, load


def test_names() -> None:
    assert list(TASKS) == ["digits", "fashion-mnist", "cifar10", "cifar100"]


@pytest.mark.parametrize("name", ["digits", "fashion-mnist", "cifar10", "cifar100"])
def test_every_task_loads_with_noise(name: str, cifar10_files: Path, cifar100_files: Path, fashion_files: Path) -> None:
    task = load(name, data=fashion_files, noise=0.5, noise_kind="symmetric", noise_seed=3)
    assert task.name == name
    wrong = int((task.train_targets != task.clean_targets).sum())
    assert wrong == round(0.5 * len(task.train_targets))
    assert int(task.train_targets.max()) < task.classes
    assert len(task.mean) == len(task.std) == task.shape[0]


def test_without_noise_labels_are_clean() -> None:
    task = load("digits")
    assert torch.equal(task.train_targets, task.clean_targets)


def test_unknown_task_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown task 'cifar-10': did you mean 'cifar10'"):
        load("cifar-10")


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "cifar100"])
def test_missing_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{name}: {tmp_path} has no"):
        load(name, data=tmp_path)


def test_bad_noise() -> None:
    with pytest.raises(ArgumentError, match="noise must be in"):
        load("digits", noise=1.0)
