"""Device scalars read on the host one call later.

The only place in the core that reads a device value. What :class:`Lagged` returns was computed at least one step ago
and its copy was started then, so that nothing waits; and the lag is fixed, so that all ranks decide alike. Two readers
wait for the device: ``Engine.now``, for a method whose rule needs a number of this step, and checks of replicas, which
are made outside of steps. The lookahead reads step counts only where they are in the host's memory.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

from lowland.core.transfer import has_streams

Sent: TypeAlias = tuple[Tensor, Any]  # the copy on the host, and the device's event after which it is complete


def read(tensor: Tensor) -> Any:
    """The values of a tensor: a number, or a list of numbers. It waits for the device that the tensor is on."""
    return tensor.tolist()


class Lagged:
    """Copies values to the host, by name, and returns them one call later."""

    def __init__(self) -> None:
        self.waiting: dict[str, Sent] = {}

    def swap(self, name: str, tensor: Tensor) -> Any:
        """Start to copy ``tensor`` to the host; return the values of the previous call, or None in the first call."""
        previous = self.waiting.get(name)
        self.waiting[name] = _send(tensor.detach())
        return None if previous is None else _arrived(previous)

    def state_dict(self) -> dict[str, Tensor]:
        """The waiting values, on the host."""
        for _, event in self.waiting.values():
            if event is not None:
                event.synchronize()
        return {name: tensor.to("cpu", copy=True) for name, (tensor, _) in self.waiting.items()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Load values from :meth:`state_dict`."""
        self.waiting = {name: (tensor.clone(), None) for name, tensor in state_dict.items()}


def _send(tensor: Tensor) -> Sent:
    """Start the copy to the host, and record an event behind it in the device's stream."""
    if not has_streams(tensor.device):
        return tensor.clone(), None
    module: Any = getattr(torch, tensor.device.type)  # torch.cuda, torch.xpu
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    event = module.Event()
    # The copy is in the stream of the tensor's device, which need not be the current device.
    event.record(module.current_stream(tensor.device))
    return host, event


def _arrived(sent: Sent) -> Any:
    tensor, event = sent
    if event is not None:
        event.synchronize()
    return read(tensor)
