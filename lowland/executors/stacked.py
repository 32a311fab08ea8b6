"""A model's tensors stacked for several probes, and what takes their place for one call under vmap."""

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
    """A loss as a module whose parameters are the model's, so that all of them can be exchanged for one call."""

    def __init__(self, model: nn.Module, loss_fn: LossFn, size: Callable[[Any], int | None]) -> None:
        super().__init__()
        self.model, self.size = model, size
        self.compute = [loss_fn]  # in a list, lest a loss that is a module counts as a part of this one

    def forward(self, batch: Any) -> dict[str, Any]:
        """The mean loss and, where there are any, the losses of the examples, a count, and tensors in aux."""
        read = terms(self.compute[0](self.model, batch), self.size(batch))
        leaves, self.form = pytree.tree_flatten(read.aux)
        self.rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.count = None if isinstance(read.count, Tensor) else read.count
        losses = {"mean": read.mean, "losses": read.losses, "count": read.count if self.count is None else None}
        losses |= {f"aux{i}": leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        return {name: t for name, t in losses.items() if t is not None}

    def aux(self, losses: dict[str, Tensor], probe: int) -> Any:
        """What the loss function returned besides, of one probe."""
        tensors = [losses[f"aux{i}"][probe].clone() if f"aux{i}" in losses else None for i in range(len(self.rest))]
        leaves = [leaf if t is None else t for t, leaf in zip(tensors, self.rest, strict=True)]
        return pytree.tree_unflatten(leaves, self.form)


class Places:
    """What takes the place of the model's tensors for one call.

    Running statistics start from zero there. Since an update is ``new = keep * old + rest``, they end up as what is
    to be added to statistics multiplied by all ``keep``: exact, also for a layer that is called repeatedly.

    Attributes:
        own: Of every probe its own: weights, and running statistics, stacked.
        counts: How often each BatchNorm is called: one for all probes, because a cumulative average reads it.
        buffers: All others. They are exchanged for themselves, so that a forward which assigns a new one cannot leave
            it in the model.
    """

    def __init__(self, loss: StackedLoss, params: Vec, stacked: Vec) -> None:
        self.own: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        self.norms: list[tuple[str, Any]] = []
        stacked_of, count = dict(zip(params, stacked, strict=True)), len(stacked[0])
        # Every place once: functional_call's own search for tied tensors takes a module that is used twice for two, and
        # would leave its tensors in the model.
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

    def settle(self, updated: list[int]) -> None:
        """Bring the model's running statistics up to date with these probes, in this order."""
        for i in updated:
            for name, m in self.norms:
                calls = self.counts[f"{name}.num_batches_tracked"]
                for key in ("running_mean", "running_var"):
                    buffer = getattr(m, key)
                    n = calls.to(buffer.dtype)
                    keep, rest = (1.0 - (m.momentum or 0.0)) ** n, self.own[f"{name}.{key}"][i]
                    if m.momentum is None:  # the average over all calls so far
                        share = n / (m.num_batches_tracked + n).clamp_min(1)
                        keep, rest = 1 - share, rest * share
                    buffer.mul_(keep).add_(rest)
                m.num_batches_tracked.add_(calls)
