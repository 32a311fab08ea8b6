"""Whether the host can read a tensor's values without waiting for a device.

Vector arithmetic has two kinds of branches. Where values are at hand, the host may look at them, and small tensors are
joined, because a call takes longer than its arithmetic. Elsewhere the host must not wait, and every kernel is a launch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from lowland.core.shards import ORDINARY

_elsewhere = False


def at_hand(t: Tensor) -> bool:
    """Whether the values of a tensor are in the host's memory; fake tensors in tests stand for a GPU."""
    return not _elsewhere and t.is_cpu and type(t) in ORDINARY


@contextmanager
def elsewhere() -> Iterator[None]:
    """Take the branches of a GPU on a CPU: in this context the values of no tensor are at hand.

    For tests, and for counts of what a GPU would launch. The context is that of the process, not of one thread, because
    backward may run in another thread.
    """
    global _elsewhere
    before, _elsewhere = _elsewhere, True
    try:
        yield
    finally:
        _elsewhere = before
