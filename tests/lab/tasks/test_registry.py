from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lowland.core.errors import ArgumentError, DataError, UnknownNameError
from lowland.lab import names
from lowland.lab.tasks.classification import Classification
from lowland.lab.tasks.digits import Digits


def test_names() -> None:
    assert list(names.tasks()) == [
        "chars", "cifar10", "cifar100", "cola", "diabetes", "digits", "fashion-mnist", "keypoints", "mrpc", "qat",
        "rte", "sst2", "tabular", "transfer", "trec", "vit-large-batch",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["digits", "fashion-mnist", "cifar10", "cifar100"])
def test_every_task_with_images_has_noise(
    name: str, cifar10_files: Path, cifar100_files: Path, fashion_files: Path
) -> None:
    noisy, clean = names.make(f"{name}:noise=0.5,noise_seed=3"), names.make(name)
    assert isinstance(noisy, Classification)
    assert isinstance(clean, Classification)
    found = noisy.datasets(fashion_files)["train"].targets
    right = clean.images(fashion_files).train_targets
    assert int((found != right).sum()) == round(0.5 * len(right))
    assert int(found.max()) < clean.classes
    assert clean.images(fashion_files).shape == clean.shape
    assert clean.images(fashion_files).classes == clean.classes
    assert torch.equal(noisy.datasets(fashion_files)["test"].targets, clean.images(fashion_files).test_targets)


def test_noise_is_drawn_from_the_seed_of_the_run() -> None:
    task = Digits(noise=0.2)
    assert task.seeded(3) == Digits(noise=0.2, noise_seed=3)
    assert Digits(noise=0.2, noise_seed=1).seeded(3).noise_seed == 1
    assert Digits().seeded(3) == Digits()
    drawn = [task.seeded(seed).datasets(None)["train"].targets for seed in (0, 1, 0)]
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_unknown_task_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown task 'cifar-10': did you mean 'cifar10'"):
        names.make("cifar-10")
    with pytest.raises(UnknownNameError, match="unknown field of digits 'nois': did you mean 'noise'"):
        names.make("digits:nois=0.2")


@pytest.mark.parametrize(
    "name", ["fashion-mnist", "cifar10", "cifar100", "sst2", "trec", "cola", "mrpc", "rte", "chars"]
)
def test_missing_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{name}: {tmp_path} has no"):
        names.make(name).datasets(tmp_path)


def test_bad_noise() -> None:
    with pytest.raises(ArgumentError, match="noise must be in"):
        names.make("digits:noise=1.0")
    with pytest.raises(ArgumentError, match="noise_kind must be one of"):
        names.make("digits:noise=0.1,noise_kind=wrong")
