"""The loss as a module, and the stacked tensors that replace the model's tensors in one call under vmap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

from lowland.core.loss import LossFn, terms
from lowland.core.vec import Vec


def tracks(m: nn.Module) -> TypeGuard[_NormBase]:
    """Whether a module is a normalization layer whose forward updates running statistics."""
    return isinstance(m, _NormBase) and m.training and m.track_running_stats


class StackedLoss(nn.Module):
    """A loss function as a module with the model's parameters, so that ``functional_call`` can replace them."""

    def __init__(self, model: nn.Module, loss_fn: LossFn, size: Callable[[Any], int | None]) -> None:
        super().__init__()
        self.model, self.size = model, size
        self.compute = [loss_fn]  # in a list, so that a loss function that is a module is not registered

    def forward(self, batch: Any) -> dict[str, Any]:
        """The mean loss and, if they exist, the losses of the examples, a count, and the tensors in aux, by name."""
        values = terms(self.compute[0](self.model, batch), self.size(batch))
        leaves, self.aux_spec = pytree.tree_flatten(values.aux)
        self.aux_rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]  # leaves that are no tensors
        self.count = None if isinstance(values.count, Tensor) else values.count
        losses = {"mean": values.mean, "losses": values.losses, "count": values.count if self.count is None else None}
        losses |= {f"aux{i}": leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        return {name: t for name, t in losses.items() if t is not None}

    def aux(self, losses: dict[str, Tensor], probe: int) -> Any:
        """The auxiliary output of the loss function for one probe."""
        count = len(self.aux_rest)
        tensors = [losses[f"aux{i}"][probe].clone() if f"aux{i}" in losses else None for i in range(count)]
        leaves = [leaf if t is None else t for t, leaf in zip(tensors, self.aux_rest, strict=True)]
        return pytree.tree_unflatten(leaves, self.aux_spec)


class Places:
    """The tensors that replace the model's tensors in one call.

    The replaced running statistics start from zero. An update is ``new = keep * old + rest``, so they end as the sum
    that must be added to the real statistics multiplied by all ``keep``. This is exact, also for a layer that is called
    several times.

    Attributes:
        own: The tensors that differ between probes, stacked: weights and running statistics.
        counts: How often each BatchNorm is called. All probes share it, because a cumulative average reads it.
        buffers: All other buffers. They replace themselves, so that a buffer that forward assigns does not stay in the
            model.
    """

    def __init__(self, loss: StackedLoss, params: Vec, stacked: Vec) -> None:
        self.own: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        self.norms: list[tuple[str, Any]] = []
        stacked_of, count = dict(zip(params, stacked, strict=True)), len(stacked[0])
        # Tied tensors are listed under all their names here, because functional_call's own search for them treats a
        # module that is used twice as two modules, and would leave the replacements in the model.
        for name, m in loss.named_modules():
            weights = m.named_parameters(name, recurse=False, remove_duplicate=False)
            self.own |= {key: stacked_of[p] for key, p in weights if p in stacked_of}
            self.buffers |= dict(m.named_buffers(name, recurse=False, remove_duplicate=False))
            if tracks(m):
                self.norms.append((name, m))
                for key in ("running_mean", "running_var"):
                    zero = torch.zeros_like(self.buffers.pop(f"{name}.{key}"))
                    self.own[f"{name}.{key}"] = torch.stack([zero] * count)
                key = f"{name}.num_batches_tracked"
                self.counts[key] = torch.zeros_like(self.buffers.pop(key))

    def update(self, updated: list[int]) -> None:
        """Update the model's running statistics with these probes, in this order."""
        for i in updated:
            for name, m in self.norms:
                calls = self.counts[f"{name}.num_batches_tracked"]
                for key in ("running_mean", "running_var"):
                    buffer = getattr(m, key)
                    n = calls.to(buffer.dtype)
                    keep, rest = (1.0 - (m.momentum or 0.0)) ** n, self.own[f"{name}.{key}"][i]
                    if m.momentum is None:  # a cumulative average over all calls
                        weight = n / (m.num_batches_tracked + n).clamp_min(1)
                        keep, rest = 1 - weight, rest * weight
                    buffer.mul_(keep).add_(rest)
                m.num_batches_tracked.add_(calls)
