"""Watches the functions that forward and loss call in one pass for several probes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.nn.functional import batch_norm
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from lowland.core.errors import UsageError
from lowland.executors.guards import graph
from lowland.executors.places import Weights

KEPT = (
    "loss_fn must take parameters from the model it is given, at every call anew, but uses some that it, or a "
    "module, has kept, and which Batched cannot displace; use executor=Local()"
)
COUNTS = (Tensor.add_, Tensor.__float__)  # what BatchNorm does with the number of its batches


class Witness(TorchFunctionMode):
    """Refuses uses of tensors that are right in a pass for one probe, but not in a pass for several.

    These are uses of the weights by other ways than the model's parameters, because only the parameters are displaced,
    and uses of running statistics other than their update by BatchNorm, because the update is all that is computed.

    Args:
        weights: The memory of the model's weights.
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self._weights = weights
        self._statistics: Mapping[int, tuple[Any, str, str]] = {}
        self._momentum: dict[int, float | None] = {}  # of each layer, by its id
        self._updates: dict[int, int] = {}  # how often each layer's statistics were updated, by its id
        self._refusal: UsageError | None = None

    @contextmanager
    def watching(self, statistics: Mapping[int, tuple[Any, str, str]]) -> Iterator[None]:
        """The context of the forward pass.

        Args:
            statistics: The layer, the key and the name of each running statistic, by the tensor's id.

        Raises:
            UsageError: A tensor is used wrongly, or a layer has not updated its statistics as often as it has counted.
        """
        self._statistics = statistics
        self._momentum = {id(m): m.momentum for m, _, _ in statistics.values()}
        try:
            with self:
                yield
        except Exception as error:
            raise self._refusal or error from error.__cause__
        for m, key, name in statistics.values():
            if key == "num_batches_tracked" and int(m.num_batches_tracked) != self._updates.get(id(m), 0):
                self._refuse(_misused(name))
        if self._refusal is not None:
            raise self._refusal

    def _refuse(self, error: UsageError) -> None:
        """Note an error, to raise it after the forward pass, which may have to set the model's modes back first."""
        self._refusal = self._refusal or error

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Look at one call."""
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        for t in given:
            if id(t) in self._statistics:
                self._check_statistic(t, func, kwargs or {})
        result = func(*args, **kwargs or {})
        made = any(isinstance(t, Tensor) for t in pytree.tree_leaves(result))
        if made and any(not is_batchedtensor(t) and t in self._weights for t in given):
            self._refuse(UsageError(KEPT))
        return result

    def _check_statistic(self, t: Tensor, func: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
        m, key, name = self._statistics[id(t)]
        momentum = self._momentum[id(m)]
        if key == "num_batches_tracked":
            right = func in COUNTS
        else:
            expected = 1.0 / max(float(m.num_batches_tracked), 1.0) if momentum is None else momentum
            right = func is batch_norm and bool(kwargs.get("training")) and kwargs.get("momentum") == expected
        if not right:
            self._refuse(_misused(name))
        elif key == "running_mean":
            self._updates[id(m)] = self._updates.get(id(m), 0) + 1


def _misused(name: str) -> UsageError:
    return UsageError(
        "running statistics of a BatchNorm in training must only be updated by it under Batched, always with the same "
        f"momentum, but {name} is used otherwise, for example in evaluation mode; use executor=Local()"
    )


class Precision(TorchFunctionMode):
    """Looks at the precision of numbers, as autocast inside a loss function sets it.

    Attributes:
        coarsest: The precision of the coarsest numbers that a function has returned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.coarsest = 0.0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Look at the results of one call."""
        result = func(*args, **kwargs or {})
        made = [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor) and t.dtype.is_floating_point]
        self.coarsest = max(self.coarsest, *(torch.finfo(t.dtype).eps for t in made), 0.0)
        return result


def refuse_padding(loss: Tensor) -> None:
    """Refuse a loss whose graph has an embedding with ``padding_idx``, which torch heeds for one probe only.

    Raises:
        UsageError: There is such an embedding.
    """
    rows = (getattr(n, "_saved_padding_idx", -1) for n in graph(loss) if n.name().startswith("EmbeddingBackward"))
    if any(0 <= row < 1 << 62 for row in rows):
        raise UsageError(
            "an embedding must have no padding_idx under Batched, because torch.func.vmap heeds it for one probe only "
            "and would train the padding row for the others; use executor=Local()"
        )
