"""Small files in the upstream layouts, and the real ones where they are at hand."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowland.lab.data import files

Write = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes one upstream file under ``tmp_path`` and makes its checksum the expected one."""

    def write(name: str, content: bytes, *, packed: bool = False) -> Path:
        path = tmp_path / (f"{name}.gz" if packed else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if packed else content)
        monkeypatch.setitem(files.MD5, name, hashlib.md5(content).hexdigest())
        return path

    return write


@pytest.fixture
def cifar10_files(put: Write, tmp_path: Path) -> Path:
    """Six parts of 10 images; pixel values say part and position, labels are 0..9."""
    for part, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        values = {"data": _pixels(part, 10), "labels": list(range(10)), "batch_label": name}
        put(f"cifar-10-batches-py/{name}", pickle.dumps(values, protocol=4))
    return tmp_path


@pytest.fixture
def cifar100_files(put: Write, tmp_path: Path) -> Path:
    """100 training and 20 test images with fine and coarse labels."""
    for part, (name, count) in enumerate([("train", 100), ("test", 20)]):
        fine = [n % 100 for n in range(count)]
        values = {"data": _pixels(part, count), "fine_labels": fine, "coarse_labels": [f // 5 for f in fine]}
        put(f"cifar-100-python/{name}", pickle.dumps(values, protocol=4))
    return tmp_path


def _pixels(part: int, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(count, 3072): red is the part, green the position, blue the column."""
    images = np.zeros((count, 3, 32, 32), dtype=np.uint8)
    images[:, 0] = part
    images[:, 1] = np.arange(count)[:, None, None]
    images[:, 2] = np.arange(32)
    return images.reshape(count, 3072)


@pytest.fixture
def fashion_files(put: Write, tmp_path: Path) -> Path:
    """20 training and 10 test images, the training files packed."""
    for part, count in (("train", 20), ("t10k", 10)):
        images = np.zeros((count, 28, 28), dtype=np.uint8)
        images[:] = np.arange(count)[:, None, None]
        images[:, 3, 5] = 255
        folder, packed = "FashionMNIST/raw", part == "train"
        put(f"{folder}/{part}-images-idx3-ubyte", idx(images), packed=packed)
        put(f"{folder}/{part}-labels-idx1-ubyte", idx(np.arange(count, dtype=np.uint8) % 10), packed=packed)
    return tmp_path


def idx(values: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """An IDX file of uint8 data."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    return header + values.tobytes()


@pytest.fixture
def real() -> Callable[[str], Path]:
    """The data folder named by LOWLAND_DATA, if it has the folder asked for."""

    def folder(needed: str) -> Path:
        root = os.environ.get("LOWLAND_DATA")
        if not root or not (Path(root) / needed).is_dir():
            pytest.skip(f"needs LOWLAND_DATA with {needed}")
        return Path(root)

    return folder
