"""Device scalars read on the host one call later.

The only place in the core that reads a device value. What a step reads was computed at least one step ago and its
copy was started then, so that nothing waits; and the lag is fixed, so that all ranks decide alike. Only checks of
replicas, which are made outside of steps, wait for what they :func:`read`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def read(tensor: Tensor) -> Any:
    """The values of a host tensor: a number, or a list of numbers."""
    return tensor.tolist()


class Lagged:
    """Values on their way to the host, by name."""

    def __init__(self) -> None:
        self.waiting: dict[str, tuple[Tensor, torch.cuda.Event | None]] = {}

    def swap(self, name: str, tensor: Tensor) -> Any:
        """Send ``tensor`` off under ``name``; return what was sent the last time, None the first time."""
        before = self.waiting.get(name)
        self.waiting[name] = _send(tensor.detach())
        return None if before is None else _arrived(before)

    def state_dict(self) -> dict[str, Tensor]:
        """The waiting values, on the host."""
        for _, event in self.waiting.values():
            if event is not None:
                event.synchronize()
        return {name: tensor.clone() for name, (tensor, _) in self.waiting.items()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Put back what :meth:`state_dict` gave."""
        self.waiting = {name: (tensor.clone(), None) for name, tensor in state_dict.items()}


def _send(tensor: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    if not tensor.is_cuda:
        return tensor.clone(), None
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return host, event


def _arrived(sent: tuple[Tensor, torch.cuda.Event | None]) -> Any:
    tensor, event = sent
    if event is not None:
        event.synchronize()
    return read(tensor)
