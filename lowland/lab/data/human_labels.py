"""The labels of CIFAR-10N: what people answered when they were asked for the classes of CIFAR-10's training images.

Reference: Wei et al., "Learning with Noisy Labels Revisited: A Study Using Real-World Human Annotations", ICLR 2022,
arXiv:2110.12088.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowland.core.errors import DataError, MissingExtraError

KEYS = {
    "worst": "worse_label",
    "aggregate": "aggre_label",
    "random1": "random_label1",
    "random2": "random_label2",
    "random3": "random_label3",
}
"""The names of the label sets here, and in the authors' file."""

FOLDER, NAME = "cifar_n", "cifar10n.npz"
SOURCE = "https://github.com/UCSC-REAL/cifar-10-100n (data/CIFAR-10_human.pt)"
REMEDY = (
    f"get CIFAR-10_human.pt from {SOURCE}, and write it as DIR/{FOLDER}/{NAME}: "
    "numpy.savez(path, **torch.load('CIFAR-10_human.pt', weights_only=False))"
)


def load(data: Path | None, kind: str, clean: Tensor) -> Tensor:
    """Read one set of labels, from ``cifar_n/cifar10n.npz`` in the data folder.

    Args:
        data: The data folder; None is the environment variable ``LOWLAND_DATA``.
        kind: A key of :data:`KEYS`.
        clean: The labels of the training images, (N,) int64, which must be those that the file names as clean.

    Returns:
        The labels, (N,) int64.

    Raises:
        DataError: The file is missing or unreadable, or does not belong to these images.
    """
    path = _path(data)
    arrays = _read(path)
    for name in ("clean_label", KEYS[kind]):
        if name not in arrays or arrays[name].shape != tuple(clean.shape) or arrays[name].dtype.kind not in "iu":
            raise DataError(f"cifar10: {path} must hold {name!r}, {len(clean)} integers, but does not; {REMEDY}")
    if not torch.equal(torch.from_numpy(arrays["clean_label"].astype("int64")), clean):
        raise DataError(
            f"cifar10: the clean labels of {path} must be those of the training images, but differ, so its labels "
            f"belong to other images; {REMEDY}"
        )
    labels = torch.from_numpy(arrays[KEYS[kind]].astype("int64"))
    if int(labels.min()) < 0 or int(labels.max()) > int(clean.max()):
        raise DataError(f"cifar10: {KEYS[kind]} in {path} must be classes, but has others; {REMEDY}")
    return labels


def _path(data: Path | None) -> Path:
    given = data if data is not None else os.environ.get("LOWLAND_DATA") or None
    if given is None:
        raise DataError(f"cifar10: no data folder is given for {FOLDER}/{NAME}; {REMEDY}; then set --data DIR")
    root = Path(given).expanduser()
    places = (root / FOLDER / NAME, root.parent / FOLDER / NAME, root / NAME)  # the root may be the images' folder
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise DataError(f"cifar10: {root} has no {FOLDER}/{NAME}; {REMEDY}")
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        import numpy as np
    except ImportError:
        raise MissingExtraError("numpy", "lab") from None
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # a damaged archive can raise any exception
        raise DataError(f"cifar10: cannot read {path} ({error}); {REMEDY}") from error
