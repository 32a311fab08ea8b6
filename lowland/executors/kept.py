"""The values, at one moment, of the tensors that a pass may write."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowland.core.errors import UsageError
from lowland.core.shards import ORDINARY
from lowland.executors.containers import Moment
from lowland.executors.names import is_array

WEIGHT = -1  # in place of the version of a tensor that shares memory with a weight, and is restored with the weight


class Kept(NamedTuple):
    """The value of one place.

    Attributes:
        tensor: The tensor or array, another value such as None, or ``ABSENT``.
        version: The tensor's version then; 0 for other values.
        copy: A copy of the values, if passes may write them; else None.
    """

    tensor: Any
    version: int
    copy: Any

    @property
    def rewritten(self) -> bool:
        """Whether the tensor's version has changed."""
        return self.version != WEIGHT and version(self.tensor) != self.version

    @property
    def differs(self) -> bool:
        """Whether the values differ from the copy. A write through ``.data`` changes values, but not the version."""
        t, copy = self.tensor, self.copy
        if copy is None:
            return False
        if is_array(t):
            return bool(t.shape != copy.shape or t.tobytes() != copy.tobytes())
        if type(t) not in ORDINARY or t.layout is not torch.strided or t.is_quantized:
            return False
        return t.shape != copy.shape or not torch.equal(t.detach().nan_to_num(), copy.nan_to_num())


class Before(list[Kept]):
    """The values of all places at one moment.

    Attributes:
        containers: The contents of containers, and the values of names.
        registered: The length of ``Registrations.log`` then.
    """

    containers: Moment
    registered: int


def size(t: Any) -> int:
    """The number of entries of a tensor or an array."""
    return int(t.numel() if isinstance(t, Tensor) else t.size)


def copied(t: Any) -> Any:
    """A copy of a tensor or an array; None if it cannot be written in place.

    Inference tensors, read-only arrays and expanded tensors cannot be written in place.
    """
    if is_array(t):
        return t.copy() if t.flags.writeable else None
    expanded = t.layout is torch.strided and any(n > 1 and s == 0 for n, s in zip(t.shape, t.stride(), strict=True))
    return None if t.is_inference() or expanded else t.detach().clone()


def version(t: Any) -> int:
    """A tensor's version, which counts its writes; 0 for arrays and inference tensors, which have none."""
    return t._version if isinstance(t, Tensor) and not t.is_inference() else 0


def unkept(name: str) -> UsageError:
    """The error for a tensor that was written before it was copied."""
    return UsageError(
        f"a tensor that forward writes must be kept, but {name} was written for the first time after the first step, "
        "or is a large frozen parameter, so its value before is gone; the step is taken back, and from now on it is "
        "kept: call backward again"
    )
