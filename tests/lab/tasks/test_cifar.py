from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lowland.core.errors import DataError
from lowland.lab.tasks import cifar


def test_cifar10_keeps_upstream_order(cifar10_files: Path) -> None:
    task = cifar.load_cifar10(cifar10_files)
    assert task.shape == (3, 32, 32)
    assert task.train_inputs.shape == (50, 3, 32, 32)
    assert task.train_inputs.dtype == torch.uint8
    assert task.train_inputs[:, 0, 0, 0].tolist() == [n // 10 for n in range(50)]
    assert task.train_inputs[:, 1, 9, 9].tolist() == [n % 10 for n in range(50)]
    assert task.train_inputs[7, 2, 11].tolist() == list(range(32))
    assert task.train_targets.tolist() == [n % 10 for n in range(50)]
    assert task.test_inputs[:, 0, 0, 0].tolist() == [5] * 10
    assert task.classes == 10
    assert task.augmentation is not None


def test_cifar100_takes_the_fine_labels(cifar100_files: Path) -> None:
    task = cifar.load_cifar100(cifar100_files)
    assert task.train_inputs.shape == (100, 3, 32, 32)
    assert task.train_targets.tolist() == list(range(100))
    assert task.test_targets.tolist() == list(range(20))
    assert task.classes == 100


@pytest.mark.parametrize(
    "values",
    [
        {"labels": [0, 1]},
        {"data": np.zeros((2, 3072), dtype=np.uint8)},
        {"data": np.zeros((2, 100), dtype=np.uint8), "labels": [0, 1]},
        {"data": [1, 2], "labels": [0, 1]},
        {"data": np.zeros((2, 3072), dtype=np.uint8), "labels": ["cat", "dog"]},
    ],
    ids=["no data", "no labels", "too small", "no array", "names"],
)
def test_a_pickle_of_the_wrong_contents(
    cifar10_files: Path, put: Callable[..., Path], values: dict[str, object]
) -> None:
    put("cifar-10-batches-py/data_batch_3", pickle.dumps(values, protocol=4))
    with pytest.raises(DataError, match="data_batch_3 must hold 'data'"):
        cifar.load_cifar10(cifar10_files)


def test_labels_out_of_range(cifar10_files: Path, put: Callable[..., Path]) -> None:
    values = {"data": np.zeros((2, 3072), dtype=np.uint8), "labels": [0, 10]}
    put("cifar-10-batches-py/test_batch", pickle.dumps(values, protocol=4))
    with pytest.raises(DataError, match=r"test labels must be in 0\.\.9, but are in 0\.\.10"):
        cifar.load_cifar10(cifar10_files)


@pytest.mark.data
def test_real_cifar10(real: Callable[[str], Path]) -> None:
    task = cifar.load_cifar10(real("cifar-10-batches-py"))
    assert torch.bincount(task.train_targets).tolist() == [5000] * 10
    assert torch.bincount(task.test_targets).tolist() == [1000] * 10
    pixels = task.train_inputs.double()
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(task.mean).double(), atol=0.01)
    assert torch.allclose(pixels.std((0, 2, 3)), torch.tensor(task.std).double(), atol=0.01)


@pytest.mark.data
def test_real_cifar100(real: Callable[[str], Path]) -> None:
    task = cifar.load_cifar100(real("cifar-100-python"))
    assert torch.bincount(task.train_targets).tolist() == [500] * 100
    pixels = task.train_inputs.double()
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(task.mean).double(), atol=0.01)
    assert torch.allclose(pixels.std((0, 2, 3)), torch.tensor(task.std).double(), atol=0.01)
