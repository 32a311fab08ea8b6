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
from lowland.executors.guards import check_others, leaves, others

if TYPE_CHECKING:
    from lowland.executors.base import Work

_VERSION = operator.attrgetter("_version")
FEW = 16  # parameters that stand for all others in most steps
SMALL = 4096  # the most entries of a parameter whose norm is read in every step
SECOND = "backward through the graph a second time"  # what torch says of a graph that an earlier backward has freed


class Mark:
    """How often parameters have been written, and in some steps a norm of each.

    Torch does not count what is written through ``.data``, so that the norms tell. They are read on a CPU and, in steps
    that are watched, where parameters have hooks: elsewhere the host would wait for the device. Where steps are not
    watched, a few parameters stand for all, and the norm of a small one for all norms: what is fused into backward
    moves all parameters. ``each`` asks for all versions.

    Args:
        work: The work of the engine.
        each: Look at all parameters in every step.
    """

    def __init__(self, work: Work, *, each: bool = False) -> None:
        count = len(work.params)
        some = not (each or work.step.watched or count <= FEW)
        self._places = range(0, count, -(-count // FEW)) if some else range(count)
        self._params = [work.params[i] for i in self._places] if some else work.params
        self._versions = list(map(_VERSION, self._params))
        whole = work.step.watched and work.step.number & (work.step.number - 1) == 0
        self._read = [*self._places] if whole else [i for i in self._places if work.params[i].numel() <= SMALL][:1]
        self._all = work.params
        self._norms = (
            self._sizes() if self._read and (_readable(work.params) if whole else _at_hand(work.params)) else None
        )

    def moved(self) -> list[int]:
        """The places of the parameters that were written since."""
        now = list(map(_VERSION, self._params))
        if now != self._versions:
            return [i for i, a, b in zip(self._places, now, self._versions, strict=True) if a != b]
        norms = None if self._norms is None else self._sizes()
        if norms is None or self._norms is None or torch.equal(norms, self._norms):
            return []
        return [i for i, a, b in zip(self._read, norms, self._norms, strict=True) if not torch.equal(a, b)]

    def _sizes(self) -> Tensor | None:
        return _norms([self._all[i] for i in self._read])


def _at_hand(params: Vec) -> bool:
    """Whether values are on the host; fake tensors have none."""
    return params[0].is_cpu and not hasattr(params[0], "fake_mode")


def _hooked(p: Tensor) -> bool:
    return bool(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None))


def _readable(params: Vec) -> bool:
    """Whether values may be read: on a CPU, unless tensors are fake, and where hooks may move weights."""
    return _at_hand(params) or any(map(_hooked, params))


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
        UsageError: It has moved weights; in the first step they are put back. Or it has met the graph of another pass.
        ParameterError: Other trainable tensors have got a gradient of it.
    """
    saved = vec.clone(work.params) if work.first and not displaced else None
    before, beside = Mark(work), others(work)
    seen = leaves(loss) if chosen and work.reentrant is None else None
    try:
        loss.backward(inputs=inputs)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        if SECOND not in str(error):
            raise
        raise UsageError(
            "every pass must compute its own graph, but backward met that of an earlier one, as where forward keeps "
            "what it has computed from weights (lru_cache, a cache of derived weights), which have moved since; "
            "compute it anew in every forward, or keep it in an attribute of the module, which lowland puts back"
        ) from error
    check_others(beside, work.loss_fn)
    if seen is not None:
        work.reentrant = any(p.grad is not None and id(p) not in seen for p in work.params)
    if changed := before.moved():
        if saved is not None:
            put_back(work.params, saved)
        raise _moved(work, changed)


def _moved(work: Work, changed: list[int]) -> UsageError:
    return UsageError(
        f"weights must stay where they are while backward runs, but {work.named(changed)} changed, as by an optimizer "
        "fused into backward (register_post_accumulate_grad_hook); step the optimizer after engine.backward(batch)"
    )


class Caller:
    """Weights while the caller runs forward and backward, whose hooks must leave them alone.

    What moves without a hook on the parameter may be the forward's, such as ``Embedding(max_norm=…)``.

    Args:
        work: The work of the engine.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._mark = Mark(work, each=True) if any(map(_hooked, work.params)) else None
        self._saved = vec.clone(work.params) if self._mark is not None and work.first else None

    def check(self) -> None:
        """Refuse weights that have moved.

        Raises:
            UsageError: A parameter with a hook has been written; in the first step all are put back.
        """
        changed = [] if self._mark is None else [i for i in self._mark.moved() if _hooked(self._work.params[i])]
        if changed:
            if self._saved is not None:
                put_back(self._work.params, self._saved)
            raise _moved(self._work, changed)
