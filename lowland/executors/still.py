"""Weights that must stay where they are while forward and backward run."""

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
    """How often each parameter has been written, and in the first three steps a norm of each.

    Torch does not count what is written through ``.data``, so that the norms tell. They are read on a CPU and where
    parameters have hooks: elsewhere the host would wait for the device.

    Args:
        work: The work of the engine.
    """

    def __init__(self, work: Work) -> None:
        self._params = work.params
        self._versions = list(map(_VERSION, work.params))
        self._norms = _norms(work.params) if work.step < 3 and _readable(work.params) else None

    def moved(self) -> list[int]:
        """The places of the parameters that were written since."""
        now = list(map(_VERSION, self._params))
        found = [] if now == self._versions else [i for i, v in enumerate(now) if v != self._versions[i]]
        if found or self._norms is None:
            return found
        norms = _norms(self._params)
        if norms is None or torch.equal(norms, self._norms):
            return []
        return [i for i in range(len(norms)) if not torch.equal(norms[i], self._norms[i])]


def _readable(params: Vec) -> bool:
    """Whether values may be read: on a CPU, unless tensors are fake, and where hooks may move weights."""
    if any(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in params):
        return True
    return params[0].is_cpu and not hasattr(params[0], "fake_mode")


def _norms(params: Vec) -> Tensor | None:
    """The sum of magnitudes of each parameter, the same whenever the parameter is; None for tensors of other kinds."""
    if not shards.ordinary(params):
        return None
    with torch.no_grad():
        dtype = vec.wide(params[0].device)
        return torch.stack([n.to(dtype) for n in torch._foreach_norm(params, 1)]).nan_to_num(-1.0)


def check_forward(work: Work, before: Mark | None) -> None:
    """Refuse a displaced forward that reports and has written weights.

    Raises:
        UsageError: It has.
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
    """Run backward, and refuse one that moves weights, as an optimizer fused into it does.

    Args:
        work: The work of the engine.
        loss: What to differentiate.
        inputs: With respect to what; None is all.
        displaced: Whether the weights are displaced, so that they are put back anyway.
        chosen: Whether the pass is for some parameters only, so that it matters whether backward runs others inside.

    Raises:
        UsageError: It has moved weights; in the first step they are put back.
    """
    saved = vec.clone(work.params) if work.first and not displaced else None
    before = Mark(work) if work.watched else None
    seen = leaves(loss) if chosen and work.reentrant is None else None
    loss.backward(inputs=inputs)  # type: ignore[no-untyped-call]
    if seen is not None:
        work.reentrant = any(p.grad is not None and id(p) not in seen for p in work.params)
    if before is not None and (changed := before.moved()):
        if saved is not None:
            put_back(work.params, saved)
        raise UsageError(
            f"weights must stay where they are while backward runs, but {work.named(changed)} changed, as by an "
            "optimizer fused into backward (register_post_accumulate_grad_hook); step the optimizer after "
            "engine.backward(batch)"
        )
