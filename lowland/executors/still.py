"""Checks that forward and backward do not change the weights."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowland.core import shards, vec
from lowland.core.errors import UsageError
from lowland.core.vec import Vec
from lowland.executors.displacement import put_back
from lowland.executors.guards import leaves

if TYPE_CHECKING:
    from lowland.executors.base import Work

_VERSION = operator.attrgetter("_version")


class Mark:
    """The versions of all parameters at one moment, and in the first three steps their norms.

    The version of a tensor does not count writes through ``.data``; a change of its norm shows them. The norms are
    read on a CPU and if parameters have hooks. In other cases the host would have to wait for the device.

    Args:
        work: The model and the step.
    """

    def __init__(self, work: Work) -> None:
        self._params = work.params
        self._versions = list(map(_VERSION, work.params))
        self._norms = _norms(work.params) if work.step.number < 3 and _readable(work.params) else None

    def moved(self) -> list[int]:
        """The indices of the parameters that were written since."""
        now = list(map(_VERSION, self._params))
        written = [] if now == self._versions else [i for i, v in enumerate(now) if v != self._versions[i]]
        if written or self._norms is None:
            return written
        norms = _norms(self._params)
        if norms is None or torch.equal(norms, self._norms):
            return []
        return [i for i in range(len(norms)) if not torch.equal(norms[i], self._norms[i])]


def _readable(params: Vec) -> bool:
    """Whether the norms are read: if parameters have hooks, which may move weights, or are on a CPU and not fake."""
    if any(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in params):
        return True
    return params[0].is_cpu and not hasattr(params[0], "fake_mode")


def _norms(params: Vec) -> Tensor | None:
    """The 1-norm of each parameter, NaN replaced by -1 so that norms compare; None for tensors of other kinds."""
    if not shards.ordinary(params):
        return None
    with torch.no_grad():
        dtype = vec.wide(params[0].device)
        return torch.stack([n.to(dtype) for n in torch._foreach_norm(params, 1)]).nan_to_num(-1.0)


def check_forward(work: Work, before: Mark | None) -> None:
    """Refuse a displaced forward that has written weights in the pass that reports.

    Args:
        work: The model and the step.
        before: The weights before forward; None without a check.

    Raises:
        UsageError: Forward has written weights.
    """
    if before is not None and (changed := before.moved()):
        raise UsageError(
            "forward must not write weights for a method whose reporting pass is displaced, but writes "
            f"{work.named(changed)}, as Embedding(max_norm=…) does, and what it writes would be undone; use a method "
            "that visits the weights, such as SAM, or renormalize after optimizer.step()"
        )


def run_backward(
    work: Work, loss: Tensor, inputs: list[Tensor] | None, *, displaced: bool, chosen: bool = False
) -> None:
    """Run backward, and refuse a backward that changes weights, as an optimizer fused into it does.

    Args:
        work: The model and the step.
        loss: The loss to differentiate.
        inputs: The tensors whose gradients are computed; None for all.
        displaced: Whether the weights are displaced, so that the pass restores them anyway.
        chosen: Whether the pass is for some parameters only. Then a backward inside backward is looked for, because it
            reaches parameters outside the graph of the loss.

    Raises:
        UsageError: Backward has changed weights; in the first step they are restored.
    """
    saved = vec.clone(work.params) if work.first and not displaced else None
    before = Mark(work) if work.step.watched else None
    in_graph = leaves(loss) if chosen and work.reentrant is None else None
    loss.backward(inputs=inputs)  # type: ignore[no-untyped-call]
    if in_graph is not None:
        work.reentrant = any(p.grad is not None and id(p) not in in_graph for p in work.params)
    if before is not None and (changed := before.moved()):
        if saved is not None:
            put_back(work.params, saved)
        raise UsageError(
            f"weights must stay where they are while backward runs, but {work.named(changed)} changed, as by an "
            "optimizer fused into backward (register_post_accumulate_grad_hook); step the optimizer after "
            "engine.backward(batch)"
        )
