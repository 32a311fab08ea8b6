"""Peak memory of a piece of work, measured by counting the tensors that are alive."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Meter(Protocol):
    """What a memory measurement tells when it is over."""

    @property
    def peak(self) -> int:
        """The most bytes alive at once."""


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors made inside the context, from their birth until they are freed.

    It watches every operation and changes none, so a measured computation gives the same bits, only slower.
    Buffers that an operation takes and returns within itself (a convolution's workspace) are not seen.

    Example:
        >>> with LiveTensors() as meter:
        ...     kept = torch.zeros(1000) + torch.ones(1000)
        >>> meter.live, meter.peak
        (4000, 12000)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._seen: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation and note the storages it returns."""
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        # views and in-place results share a storage that is known already, by address of its C++ object
        key, nbytes = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def freed(_: object) -> None:
            del self._seen[key]
            self.live -= nbytes

        self._seen[key] = weakref.ref(storage, freed)
        self.live += nbytes
        self.peak = max(self.peak, self.live)


class CudaAllocator(AbstractContextManager["CudaAllocator"]):
    """What CUDA's allocator held at most, above what it held at the start."""

    peak: int = 0

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> Self:
        torch.cuda.reset_peak_memory_stats(self.device)
        self._base = torch.cuda.memory_allocated(self.device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Read the allocator's own peak."""
        self.peak = torch.cuda.max_memory_allocated(self.device) - self._base


def meter(device: torch.device) -> AbstractContextManager[Meter]:
    """The right measurement for a device: CUDA's allocator, or the tensors alive."""
    return CudaAllocator(device) if device.type == "cuda" else LiveTensors()
