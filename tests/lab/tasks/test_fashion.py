from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lowland.core.errors import DataError
from lowland.lab.tasks import fashion

IMAGES = "FashionMNIST/raw/train-images-idx3-ubyte"


def test_reads_plain_and_packed_files(fashion_files: Path) -> None:
    task = fashion.load(fashion_files)
    assert task.shape == (1, 28, 28)
    assert task.train_inputs.shape == (20, 1, 28, 28)
    assert task.train_inputs[:, 0, 0, 0].tolist() == list(range(20))
    assert (task.train_inputs[:, 0, 3, 5] == 255).all()
    assert task.test_inputs.shape == (10, 1, 28, 28)
    assert task.test_targets.tolist() == list(range(10))
    assert task.train_targets.dtype == torch.int64


@pytest.mark.parametrize("inner", ["FashionMNIST", "FashionMNIST/raw"])
def test_the_root_may_be_the_folder_itself(fashion_files: Path, inner: str) -> None:
    assert fashion.load(fashion_files / inner).classes == 10


@pytest.mark.parametrize(
    "content",
    [b"", b"\0\0\x08\x03", b"\0\0\x0d\x03" + bytes(12), b"\0\0\x08\x01" + bytes(4), b"\0\0\x08\x03" + bytes(13)],
    ids=["empty", "cut", "floats", "labels", "longer"],
)
def test_a_file_that_is_no_idx_file(fashion_files: Path, put: Callable[..., Path], content: bytes) -> None:
    (fashion_files / f"{IMAGES}.gz").unlink()
    put(IMAGES, content)
    with pytest.raises(DataError, match="train-images-idx3-ubyte must be an IDX file of 3-dim"):
        fashion.load(fashion_files)


def test_images_and_labels_of_different_number(fashion_files: Path, put: Callable[..., Path]) -> None:
    labels = "FashionMNIST/raw/t10k-labels-idx1-ubyte"
    put(labels, b"\0\0\x08\x01" + (9).to_bytes(4, "big") + bytes(9))
    with pytest.raises(DataError, match="has 10 and 9"):
        fashion.load(fashion_files)


@pytest.mark.data
def test_real_fashion_mnist(real: Callable[[str], Path]) -> None:
    task = fashion.load(real("FashionMNIST"))
    assert torch.bincount(task.train_targets).tolist() == [6000] * 10
    pixels = task.train_inputs.double()
    assert float(pixels.mean()) == pytest.approx(task.mean[0], abs=0.01)
    assert float(pixels.std()) == pytest.approx(task.std[0], abs=0.01)
