"""What was in the places that a pass may write, at one moment."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowland.core.errors import UsageError
from lowland.core.shards import ORDINARY
from lowland.executors.containers import Moment
from lowland.executors.names import is_array

WEIGHT = -1  # the version of a tensor that shares memory with a weight: its values go back with the weight


class Kept(NamedTuple):
    """What was in a place: a tensor or an array, None or nothing, its version, and a copy if it may be written."""

    tensor: Any
    version: int
    copy: Any

    @property
    def rewritten(self) -> bool:
        """Whether the tensor was written since."""
        return self.version != WEIGHT and version(self.tensor) != self.version

    @property
    def differs(self) -> bool:
        """Whether it has other values than its copy though its version is the same, as after writing ``.data``."""
        t, copy = self.tensor, self.copy
        if copy is None:
            return False
        if is_array(t):
            return bool(t.shape != copy.shape or t.tobytes() != copy.tobytes())
        if type(t) not in ORDINARY or t.layout is not torch.strided:
            return False
        return t.shape != copy.shape or not torch.equal(t.detach().nan_to_num(), copy.nan_to_num())


class Before(list[Kept]):
    """What was in all places at one moment, in containers, and what modules had been given in this step."""

    rest: Moment
    given: int


def size(t: Any) -> int:
    """The number of entries of a tensor or an array."""
    return int(t.numel() if isinstance(t, Tensor) else t.size)


def copied(t: Any) -> Any:
    """A copy of a tensor or an array; None where it cannot be written in place at all.

    That is an inference tensor, a read-only array, or a tensor of which an entry stands for several.
    """
    if is_array(t):
        return t.copy() if t.flags.writeable else None
    folded = t.layout is torch.strided and any(n > 1 and s == 0 for n, s in zip(t.shape, t.stride(), strict=True))
    return None if t.is_inference() or folded else t.detach().clone()


def version(t: Any) -> int:
    """How often torch has counted a tensor as written."""
    return t._version if isinstance(t, Tensor) and not t.is_inference() else 0


def unkept(name: str) -> UsageError:
    """The error for a tensor that was written before anyone had kept what was in it."""
    return UsageError(
        f"a tensor that forward writes must be kept, but {name} was written for the first time after the first step, "
        "or is a large frozen parameter, so its value before is gone; the step is taken back, and from now on it is "
        "kept: call backward again"
    )
