"""A guard for tests without a GPU: "meta" stands for the GPU, and what would wait for it raises an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

READS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::masked_select"}


class WaitError(AssertionError):
    """An operation would wait for the GPU."""


class _NoConstants(TorchFunctionMode):
    """Raises :class:`WaitError` where numbers of the host become a tensor of the GPU, which "meta" does not copy."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        there = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "meta"
        if func in (torch.tensor, torch.as_tensor) and there and not isinstance(args[0], Tensor):
            raise WaitError(f"torch.{func.__name__}(…, device=…) copies from the host and waits")
        return func(*args, **kwargs)


class NoWaiting(TorchDispatchMode):
    """Raises :class:`WaitError` where the host would wait for a GPU, for which the device "meta" stands.

    These are operations that read a value of the GPU, tensors of numbers of the host that are made on the GPU, and
    copies between the GPU and the host without ``non_blocking=True``.

    Attributes:
        copies: The number of copies between devices so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0
        self._constants = _NoConstants()

    def __enter__(self) -> Self:
        self._constants.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._constants.__exit__(*error)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name  # type: ignore[attr-defined]
        devices = {leaf.device.type for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        if "meta" in devices and name in READS:
            raise WaitError(f"{name} reads a value of the GPU")
        if name in ("aten::_to_copy", "aten::copy_"):
            devices |= {torch.device(kwargs["device"]).type} if kwargs.get("device") is not None else set()
            if len(devices) > 1:
                self.copies += 1
                if not (kwargs.get("non_blocking") or (name == "aten::copy_" and True in args[2:])):
                    raise WaitError(f"{name} between {' and '.join(sorted(devices))} waits")
        return func(*args, **kwargs)
