"""Host values brought to a device without waiting for it.

An ordinary copy from the host's memory to a GPU waits until the GPU has done all work that was queued before. A copy
from pinned memory does not, and neither does a kernel that fills a tensor with a number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def has_streams(device: torch.device) -> bool:
    """Whether a device works through its own queue, so that the host can run ahead: CUDA, XPU and similar ones."""
    return device.type != "cpu" and hasattr(getattr(torch, device.type, None), "current_stream")


def to_device(t: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device.

    The host waits only if the device is the host itself, or has no pinned memory, as MPS: there, a copy that does not
    wait could read memory that has been freed.
    """
    if t.device == device:
        return t
    if t.is_cpu and has_streams(device):
        t = t.pin_memory()  # torch keeps this memory until the copy is complete
    return t.to(device, non_blocking=device.type not in ("cpu", "mps"))


def scalar(value: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number, or a tensor of shape ``()``, as a tensor of shape ``()`` on a device."""
    if isinstance(value, Tensor):
        value = value.to(dtype) if value.is_cpu else value  # a GPU of Apple has no float64
        return to_device(value, device).to(dtype)
    return torch.full((), value, dtype=dtype, device=device)
