"""Reads upstream data files: searches the data folder, verifies checksums, and loads pickles safely."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowland.core.errors import DataError, MissingExtraError

# The MD5 of each file, uncompressed: of images as their authors published it, of texts that of the copy which lowland
# was tried with, because most of their authors published none.
MD5 = {
    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "FashionMNIST/raw/train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "FashionMNIST/raw/train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "FashionMNIST/raw/t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "FashionMNIST/raw/t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    "glue/SST-2/train.tsv": "da409a0a939379ed32a470bc0f7fe99a",
    "glue/SST-2/dev.tsv": "268856b487b2a31a28c0a93daaff7288",
    "glue/SST-2/test-labeled.tsv": "33463d09bb4bacbdaf886f50edb2b437",
    "glue/CoLA/train.tsv": "c79d4693b8681800338aa044bf9e797b",
    "glue/CoLA/dev.tsv": "c5475ccefc9e7ca0917294b8bbda783c",
    "glue/MRPC/train.tsv": "ae5807f0d122559375f4a88e5297fe82",
    "glue/MRPC/dev.tsv": "46d7b1140a938ffaceeaaf9b70aca14c",
    "glue/MRPC/test-labeled.tsv": "687dc92c863156d470b23b536ddf324b",
    "glue/RTE/train.tsv": "d2844f558d111a16503144bb37a8165f",
    "glue/RTE/dev.tsv": "973cb4178d4534cf745a01c309d4a66c",
    "trec/train.txt": "fe4f4044708a614721ad3624936db917",
    "trec/test.txt": "19d2d655c2f45e62b45e3a98c29a05c0",
    "tinyshakespeare/input.txt": "6fb458f1232090904fb40fe944165e91",
}


def read(task: str, folder: str, names: Sequence[str], data: Path | None, source: str) -> list[bytes]:
    """Read the files ``names`` in ``folder`` below the data folder, and verify their checksums.

    A file may be compressed, as ``name.gz``. The data folder may also be ``folder`` itself, or a part of its path.

    Args:
        task: The name of the task, for error messages.
        folder: The path of the files below the data folder, in torchvision's layout.
        names: The file names in that folder.
        data: The data folder; None is the environment variable ``LOWLAND_DATA``.
        source: The download address of the files, for error messages.

    Returns:
        The contents of the files, uncompressed, in the order of ``names``.

    Raises:
        DataError: No data folder is given; or a file is missing, unreadable, or differs from the upstream file.
    """
    root = _root(task, folder, names, data, source)
    parts = folder.split("/")
    places = [root.joinpath(*parts[start:]) for start in range(len(parts) + 1)]
    home = next((p for p in places if any(_path(p, n) for n in names)), None)
    missing = [n for n in names if home is None or _path(home, n) is None]
    if home is None or missing:
        raise DataError(
            f"{task}: {home or root} has no {', '.join(missing)}. {_layout(folder, names)}. "
            f"Get them from {source}, then set --data DIR or LOWLAND_DATA=DIR (now {root})"
        )
    return [_checked(task, home, folder, name, source) for name in names]


def _root(task: str, folder: str, names: Sequence[str], data: Path | None, source: str) -> Path:
    given = data if data is not None else os.environ.get("LOWLAND_DATA") or None
    if given is None:
        raise DataError(
            f"{task}: no data folder is given. {_layout(folder, names)}. "
            f"Get them from {source}, then set --data DIR or LOWLAND_DATA=DIR"
        )
    return Path(given).expanduser()


def _layout(folder: str, names: Sequence[str]) -> str:
    return f"Expected is DIR/{folder}/ with the files {', '.join(names)}"


def _path(folder: Path, name: str) -> Path | None:
    """The path of a file, compressed or not; None if there is none."""
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _checked(task: str, home: Path, folder: str, name: str, source: str) -> bytes:
    path = _path(home, name)
    assert path is not None, name
    remedy = f"delete it and get it again from {source}"
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        raise DataError(f"{task}: cannot read {path} ({error}); {remedy}") from error
    expected = MD5[f"{folder}/{name}"]
    got = hashlib.md5(content, usedforsecurity=False).hexdigest()
    other = next((entry for entry, digest in MD5.items() if digest == got), None)
    if got != expected and other is not None:
        raise DataError(
            f"{task}: {path} must be {folder}/{name}, but is {other}, of another task; give --data or LOWLAND_DATA the "
            f"folder above {folder}"
        )
    if got != expected:
        raise DataError(f"{task}: {path} is not the upstream file: its MD5 must be {expected}, but is {got}; {remedy}")
    return content


def unpickled(task: str, name: str, content: bytes) -> dict[str, Any]:
    """Load a dictionary of plain values and numeric arrays from an upstream pickle.

    A pickle can run any code while it is loaded. So all its imports are refused, except those that build numpy arrays.

    Args:
        task: The name of the task, for error messages.
        name: The name of the file, for error messages.
        content: The pickle.

    Raises:
        DataError: The pickle imports anything else, is damaged, or holds no dictionary.
    """
    try:
        value = _Arrays(io.BytesIO(content), encoding="latin1").load()
    except DataError as error:
        raise DataError(f"{task}: {name} {error}; do not use this file, get it again") from None
    except Exception as error:  # a damaged pickle can raise any exception
        raise DataError(f"{task}: {name} is no readable pickle ({error}); get it again") from error
    if not isinstance(value, dict):
        raise DataError(f"{task}: {name} must hold a dictionary, but holds a {type(value).__name__}; get it again")
    return {k.decode("latin1") if isinstance(k, bytes) else str(k): v for k, v in value.items()}


class _Arrays(pickle.Unpickler):
    """Loads plain values and numeric numpy arrays, and refuses all other imports."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a safe object for each of the three names that numeric arrays need; refuse all other names."""
        try:
            import numpy as np
        except ImportError:
            raise MissingExtraError("numpy", "lab") from None

        def dtype(spec: str, align: object = False, copy: object = False) -> np.dtype[Any]:
            # Files of Python 2 have 0 and 1 here; numpy expects booleans and warns about integers.
            kind = np.dtype(spec, bool(align), bool(copy))
            if kind.hasobject:
                raise DataError("wants an array of Python objects")
            return kind

        # numpy's own reduce gives the function, so no private import is needed. Numpy 2 moved it to another module.
        rebuild = np.empty(0).__reduce__()[0]
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): rebuild,
            ("numpy._core.multiarray", "_reconstruct"): rebuild,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): dtype,
        }
        if (module, name) not in allowed:
            raise DataError(f"wants to import {module}.{name}, which no data file needs")
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("refers to objects outside itself")
