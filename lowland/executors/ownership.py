"""Copies gradients whose memory the next backward overwrites, as the memory of CUDA graphs."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core.errors import UsageError
from lowland.core.shards import ORDINARY
from lowland.executors import modes
from lowland.executors.uses import calls_compiled, modules_of

_USES: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)


class Ownership:
    """Whether gradients must be copied, because the next backward overwrites their memory.

    ``torch.cuda.make_graphed_callables`` and CUDA graphs of ``torch.compile`` write gradients to static buffers.

    Args:
        model: The model.
        device: The model's device.
        loss_fn: The loss function.
        views: Whether gradients are views of DDP's buckets, which are copied elsewhere.

    Attributes:
        needed: Whether gradients must be copied. It becomes true if the model uses CUDA graphs, or after a gradient
            whose memory is referenced elsewhere.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, loss_fn: Callable[..., Any] | None = None, *, views: bool = False
    ) -> None:
        self._model, self._loss_fn, self._views = model, loss_fn, views
        self._graphs = hasattr(getattr(torch, device.type, None), "graph_pool_handle")  # torch.cuda, torch.xpu
        self._last: list[tuple[weakref.ref[Tensor], int]] = []
        self.needed, self._look = False, True
        self.look()

    def begin(self, *, look: bool) -> None:
        """Begin a step.

        Args:
            look: Whether to inspect the model for CUDA graphs, and the gradients of this step for other references to
                their memory. On devices with CUDA graphs, every step inspects the gradients.
        """
        self._look = look or self._graphs
        if look:
            self.look()

    def look(self) -> None:
        """Inspect the model, which may have been captured or compiled since the last inspection."""
        self.needed |= bool(modes.captured(self._model))
        if self._graphs and not self.needed:
            used = modules_of(self._loss_fn).values()
            self.needed = any(map(modes.compiled, (self._model, *used))) or calls_compiled(self._model, self._loss_fn)

    def own(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients that backward has computed, copied if ``needed``."""
        if self._look and not self.needed and not self._views:
            self.needed = _referenced_elsewhere(grads)
        return [None if g is None else g.clone() for g in grads] if self.needed else list(grads)

    def check(self, grads: Sequence[Tensor | None]) -> None:
        """Check that the gradients do not lie in the memory of an earlier pass's gradients.

        Raises:
            UsageError: A gradient overwrote an earlier one that is still in use. From now on gradients are copied.
        """
        if self.needed:
            self._last.clear()
            return
        strided = _strided(grads)
        addresses = [g.untyped_storage().data_ptr() for g in strided]
        alive = [entry for entry in self._last if entry[0]() is not None]
        if {address for _, address in alive if address} & set(addresses):
            self.needed = True
            raise UsageError(
                "gradients of different passes must lie in memory of their own, but backward has overwritten those of "
                "an earlier pass, as CUDA graphs do; the step is taken back, and from now on gradients are copied: "
                "call backward again"
            )
        self._last = alive + [(weakref.ref(g), address) for g, address in zip(strided, addresses, strict=True)]


def _strided(grads: Sequence[Tensor | None]) -> list[Tensor]:
    return [g for g in grads if g is not None and type(g) in ORDINARY and g.layout is torch.strided]


def _referenced_elsewhere(grads: Sequence[Tensor | None]) -> bool:
    """Whether the memory of a gradient has other references, such as that of a CUDA graph, which will overwrite it.

    Torch counts the references of a storage. The gradient has one, and the Python object in ``storages`` has one.
    """
    if _USES is None:
        return False
    storages = [g.untyped_storage() for g in _strided(grads)]
    if all(_USES(s._cdata) <= 2 for s in storages):
        return False
    holders = Counter(s._cdata for s in storages)  # several gradients may share one storage
    return any(_USES(key) > count + 1 for key, count in holders.items())
