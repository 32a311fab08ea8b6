"""Measures peak memory: by CUDA's allocator, or by counting the bytes of live tensors."""

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
    """The result of a memory measurement."""

    @property
    def peak(self) -> int:
        """The peak memory in bytes."""


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are made inside the context, until they are freed.

    It sees the result of every operation and changes none, so a measured computation gives the same bits, but is
    slower. Memory that an operation allocates and frees itself, such as a convolution's workspace, is not counted.

    Attributes:
        live: The bytes of the tensors that are alive now.
        peak: The maximum of ``live``.

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
        """Run the operation and count the storages of its results, unless they were there before, as a view's is."""
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage(), nbytes=0)
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self._count(storage, storage.nbytes())
        return out

    def _count(self, storage: torch.UntypedStorage, nbytes: int) -> None:
        # Views and results of in-place operations share a storage that is already counted. The address of the C++
        # object identifies a storage.
        key = storage._cdata
        if key in self._seen:
            return

        def freed(_: object) -> None:
            del self._seen[key]
            self.live -= nbytes

        self._seen[key] = weakref.ref(storage, freed)
        self.live += nbytes
        self.peak = max(self.peak, self.live)


class CudaAllocator(AbstractContextManager["CudaAllocator"]):
    """Measures the peak of CUDA's allocated memory, in bytes above the memory allocated at the start.

    At the start the allocator gives its unused memory back, so that :func:`reserved` counts this training's.
    """

    peak: int = 0

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> Self:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        self._base = torch.cuda.memory_allocated(self.device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Read the peak from the allocator."""
        self.peak = torch.cuda.max_memory_allocated(self.device) - self._base


def reserved(device: torch.device) -> dict[str, int]:
    """The peak of the memory that CUDA's allocator has reserved, for a line of the run file; nothing on a CPU.

    It includes the data set, and memory that the allocator holds but no tensor uses.
    """
    return {"reserved_memory": torch.cuda.max_memory_reserved(device)} if device.type == "cuda" else {}


def meter(device: torch.device) -> AbstractContextManager[Meter]:
    """The memory measurement for a device: CUDA's allocator for a GPU, else live tensors."""
    return CudaAllocator(device) if device.type == "cuda" else LiveTensors()
