"""The recorded trajectories: where they lie, what a file holds, and how closely it is followed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FOLDER = Path(__file__).parent
Array = npt.NDArray[Any]

# Releases in which one pass of a step updates BatchNorm's statistics, as in lowland; in the others every pass does.
ONE_PASS = ("ausam", "bisam", "friendly", "gsam", "late", "momentum", "sam_bn", "wsam", "xsam", "logits_sam")


@dataclass(frozen=True)
class Recorded:
    """One run of released code: a file as README.md describes it."""

    name: str
    meta: dict[str, Any]
    arrays: dict[str, Array]

    @property
    def weights(self) -> Array:
        return self.arrays["weights"]

    @property
    def steps(self) -> int:
        return int(self.meta["steps"])

    @property
    def key(self) -> str:
        return str(self.meta["method"]["key"])

    @property
    def ranks(self) -> int:
        return 2 if "ranks" in self.meta else 1

    @property
    def tolerance(self) -> float:
        """Largest absolute deviation, of any weight after any step: see README.md."""
        if "reimplementation_deviation" not in self.meta:  # the first set
            return 1e-5 if self.meta["method"].get("decomposition") == "tensor" else 1e-7
        if "in float32" in self.meta["expect"]:
            return 1e-6
        return 1e-8 if (self.meta["model"], self.meta["optimizer"]) == ("bn", "AdamW") else 1e-9

    @property
    def one_pass(self) -> bool:
        """Whether the file's ``buffers`` are to be compared: it has some, and the release's policy is lowland's."""
        return self.meta["model"] == "bn" and self.name.startswith(ONE_PASS)

    def indices(self, step: int) -> Array:
        """The positions of a step's examples in the data set, (16,)."""
        size = self.meta["batch_size"]
        start = step % 114 * size  # vSAM's run starts over after 114 batches; no other takes as many steps
        return problem()["order"][start : start + size]


@cache
def problem() -> dict[str, Array]:
    """``inputs`` (96, 6), ``targets`` (96,), and the ``order`` (1920,) in which all runs read them."""
    return _arrays("problem")


@cache
def recorded(name: str) -> Recorded:
    """The run of that name."""
    arrays = _arrays(name)
    return Recorded(name, json.loads(str(arrays.pop("meta"))), arrays)


def names() -> list[str]:
    """All runs, by name."""
    return sorted(path.stem for path in (FOLDER / "data").glob("*.npz") if path.stem != "problem")


def examples(index: Array) -> tuple[Tensor, Tensor, Tensor]:
    """The batch ``(inputs, targets, index)`` at these positions."""
    return (*(torch.from_numpy(problem()[key][index]) for key in ("inputs", "targets")), torch.from_numpy(index))


def deviation(found: Any, expected: Array) -> float:
    """The largest absolute difference, over all steps and numbers."""
    return float(np.abs(np.stack(list(found)) - expected[: len(found)]).max(initial=0.0))


def _arrays(name: str) -> dict[str, Array]:
    with np.load(FOLDER / "data" / f"{name}.npz", allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}
