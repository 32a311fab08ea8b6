"""The loss on stacked tensors, which replace the model's tensors in one call under vmap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_batchedtensor, maybe_get_bdim
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

from lowland.core.errors import LossError, UsageError
from lowland.core.loss import LossFn, one_for_all, terms
from lowland.core.vec import Vec
from lowland.executors.modes import modules_of
from lowland.executors.passes import WEIGHT


def tracks(m: nn.Module) -> TypeGuard[_NormBase]:
    """Whether a module is a normalization layer whose forward updates running statistics."""
    return isinstance(m, _NormBase) and m.training and m.track_running_stats


def _one_for_all(losses: Tensor | None) -> bool:
    """Whether the losses of each of vmap's runs are one number, by the history of the tensor of all runs."""
    inside, runs = losses, 1
    while inside is not None and is_batchedtensor(inside):
        place, inside = maybe_get_bdim(inside), get_unwrapped(inside)
        runs *= inside.shape[place]
    return one_for_all(losses, inside, runs)


class StackedLoss:
    """A loss function that returns tensors only, as vmap wants them, and keeps what else it has returned.

    Args:
        model: The model.
        loss_fn: The loss function.
        size: The number of examples of a batch, if it is known.
        cut: Whether a batch is a part of the step's batch, so that the loss must give its weight.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn, size: Callable[[Any], int | None], *, cut: bool) -> None:
        self.model, self.loss_fn, self.size, self.cut = model, loss_fn, size, cut
        self._names: list[str] = []

    def __call__(self, batch: Any) -> tuple[Tensor, ...]:
        """The mean loss and, if they exist, the losses of the examples, a count, and the tensors in aux.

        Raises:
            LossError: The loss of a part of a batch is a mean.
        """
        values = terms(self.loss_fn(self.model, batch), self.size(batch))
        if self.cut and (values.count is None or _one_for_all(values.losses)):
            raise LossError(WEIGHT)
        leaves, self._aux_spec = pytree.tree_flatten(values.aux)
        self._aux_rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]  # leaves that are no tensors
        self.count = None if isinstance(values.count, Tensor) else values.count
        losses = {"mean": values.mean, "losses": values.losses, "count": values.count}
        losses |= {f"aux{i}": leaf for i, leaf in enumerate(leaves)}
        tensors = {name: t for name, t in losses.items() if isinstance(t, Tensor)}
        self._names = list(tensors)
        return tuple(tensors.values())

    def named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """What the last call has returned, by name."""
        return dict(zip(self._names, tensors, strict=True))

    def aux(self, losses: dict[str, Tensor], probe: int) -> Any:
        """The auxiliary output of the loss function for one probe."""
        count = len(self._aux_rest)
        tensors = [losses[f"aux{i}"][probe].clone() if f"aux{i}" in losses else None for i in range(count)]
        leaves = [leaf if t is None else t for t, leaf in zip(tensors, self._aux_rest, strict=True)]
        return pytree.tree_unflatten(leaves, self._aux_spec)


class Places:
    """The places of the model's tensors that others replace in one call.

    The replaced running statistics start from zero. An update is ``new = keep * old + rest``, so they end as the sum
    that must be added to the real statistics multiplied by all ``keep``. This is exact, also for a layer that is called
    several times.

    Args:
        model: The model.
        params: Its trainable parameters. A tied parameter has several places.
        count: The number of probes.

    Attributes:
        statistics: Running means and variances of all probes, stacked.
    """

    def __init__(self, model: nn.Module, params: Vec, count: int) -> None:
        self._model = model
        self._own: list[tuple[dict[str, Any], str, int]] = []  # place, and the number of the tensor that it gets
        self._calls: list[tuple[dict[str, Any], str, Tensor]] = []  # how often each BatchNorm is called, for all probes
        self._buffers: list[tuple[dict[str, Any], str, Tensor, int]] = []  # all other buffers, with their versions
        self._norms: list[tuple[Any, Tensor, Tensor, Tensor]] = []
        self.statistics: Vec = []
        numbers = {id(p): i for i, p in enumerate(params)}
        for m in modules_of(model):
            own: Any = m._parameters
            self._own += [(own, key, numbers[id(p)]) for key, p in own.items() if id(p) in numbers]
            keys: tuple[str, ...] = ()
            if tracks(m):
                keys = ("running_mean", "running_var", "num_batches_tracked")
                self._add(m, len(params), count)
            for key, b in m._buffers.items():
                if b is not None and key not in keys:
                    self._buffers.append((m._buffers, key, b, b._version))

    def _add(self, norm: _NormBase, first: int, count: int) -> None:
        """Add the running statistics of a layer; their numbers follow those of the parameters."""
        buffers: Any = norm._buffers
        mean, variance = (buffers[key].new_zeros(count, *buffers[key].shape) for key in ("running_mean", "running_var"))
        number = first + len(self.statistics)
        self._own += [(buffers, "running_mean", number), (buffers, "running_var", number + 1)]
        self.statistics += [mean, variance]
        calls = torch.zeros_like(buffers["num_batches_tracked"])
        self._calls.append((buffers, "num_batches_tracked", calls))
        self._norms.append((norm, mean, variance, calls))

    @contextmanager
    def replaced(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """The context of a call in which the places hold other tensors: parameters, then statistics.

        Raises:
            UsageError: Another buffer has been changed.
        """
        before = [owner[key] for owner, key, *_ in (*self._own, *self._calls)]
        assigned = None
        try:
            for owner, key, number in self._own:
                owner[key] = tensors[number]
            for owner, key, calls in self._calls:
                owner[key] = calls
            yield
        finally:
            for (owner, key, *_), tensor in zip((*self._own, *self._calls), before, strict=True):
                owner[key] = tensor
            for owner, key, b, version in self._buffers:
                if owner.get(key) is not b or b._version != version:
                    owner[key], assigned = b, assigned or (owner, key)
        if assigned is not None:
            raise UsageError(
                "loss_fn must not change the model's buffers under Batched, except for BatchNorm's, but changes "
                f"{self._name(*assigned)}, which probes would have to do in turn; use executor=Local()"
            )

    def running(self) -> dict[int, tuple[Any, str, str]]:
        """The layer, the key and the name of each running statistic that the places hold now, by the tensor's id."""
        keys = ("running_mean", "running_var", "num_batches_tracked")
        layers = [(m, self._name(m._buffers, "")) for m, *_ in self._norms]
        return {id(m._buffers[key]): (m, key, f"{name}.{key}".lstrip(".")) for m, name in layers for key in keys}

    def _name(self, owner: Any, key: str) -> str:
        names = (name for name, m in self._model.named_modules() if m._buffers is owner)
        return f"{next(names)}.{key}".strip(".")

    def update(self, updated: list[int]) -> None:
        """Update the model's running statistics with these probes, in this order."""
        for i in updated:
            for m, means, variances, calls in self._norms:
                for buffer, stacked in ((m.running_mean, means), (m.running_var, variances)):
                    n = calls.to(buffer.dtype)
                    keep, rest = (1.0 - (m.momentum or 0.0)) ** n, stacked[i]
                    if m.momentum is None:  # a cumulative average over all calls
                        weight = n / (m.num_batches_tracked + n).clamp_min(1)
                        keep, rest = 1 - weight, rest * weight
                    buffer.mul_(keep).add_(rest)
                m.num_batches_tracked.add_(calls)
