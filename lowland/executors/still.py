"""Checks that forward and backward do not write weights."""

from __future__ import annotations

import operator
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lowland.core import precision, shards, vec
from lowland.core.at_hand import at_hand
from lowland.core.errors import UsageError
from lowland.core.vec import Vec
from lowland.executors.displacement import put_back
from lowland.executors.guards import check_others, leaves, others

if TYPE_CHECKING:
    from lowland.executors.base import Work

_VERSION, _DTYPE = operator.attrgetter("_version"), operator.attrgetter("dtype")
FEW = 16  # the number of parameters that most steps check, as a sample of all
SMALL = 4096  # the most entries of a parameter whose values every step compares
SECOND = "backward through the graph a second time"  # from torch's error for a graph that was freed already


class Mark:
    """The versions of parameters at one moment, and some of their values.

    A tensor's version counts its writes, except writes through ``.data``. Values detect these.

    - In watched steps 0, 1, 2, 4, 8, …, the norms of all parameters are compared, on a CPU or if parameters have hooks.
    - In other steps, the values of one small parameter are compared, on a CPU only, because on other devices the host
      would wait.
    - In steps that are not watched, the versions of a sample of the parameters are compared. The sample suffices,
      because an optimizer that is fused into backward writes all parameters.

    Args:
        work: The work of the engine.
        each: Check the versions of all parameters, also in steps that are not watched.
    """

    def __init__(self, work: Work, *, each: bool = False) -> None:
        count = len(work.params)
        sample = not (each or work.step.watched or count <= FEW)
        self._indices = range(0, count, -(-count // FEW)) if sample else range(count)
        self._params = [work.params[i] for i in self._indices] if sample else work.params
        self._versions = list(map(_VERSION, self._params))
        self._one: Tensor | None = None  # the small parameter whose values are compared
        self._all: Vec | None = None  # the parameters whose norms are compared, in some watched steps
        if work.step.watched and work.step.number & (work.step.number - 1) == 0:
            self._all = work.params if _readable(work.params) else None
        else:
            in_order = chain(sorted(self._params[:FEW], key=torch.numel), self._params[FEW:])  # small ones first
            self._one = next((p for p in in_order if p.numel() <= SMALL and at_hand(p)), None)
        self._values = None if self._one is None else self._one.detach().clone()
        self._norms = None if self._all is None else _norms(self._all)

    def moved(self) -> list[int]:
        """The indices of the parameters that were written since the mark was made."""
        versions = list(map(_VERSION, self._params))
        if versions != self._versions:
            return [i for i, a, b in zip(self._indices, versions, self._versions, strict=True) if a != b]
        if self._one is not None and self._values is not None and _differ(self._one.detach(), self._values):
            return [next(i for i, p in zip(self._indices, self._params, strict=True) if p is self._one)]
        norms = None if self._all is None else _norms(self._all)
        if norms is None or self._norms is None or torch.equal(norms, self._norms):
            return []
        return [i for i, (a, b) in enumerate(zip(norms, self._norms, strict=True)) if not torch.equal(a, b)]


def _hooked(p: Tensor) -> bool:
    return bool(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None))


def _readable(params: Vec) -> bool:
    """Whether norms are compared: on a CPU, or if a parameter has hooks, which may write weights."""
    return all(map(at_hand, shards.local(params[:1]))) or any(map(_hooked, params))


def _differ(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors differ; NaN is equal to NaN."""
    if torch.equal(a, b):
        return False
    return a.shape != b.shape or a.dtype != b.dtype or not torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def _norms(params: Vec) -> Tensor | None:
    """The sum of absolute values of each parameter, shape (n,), NaN as -1; None if a parameter is a tensor subclass."""
    if not shards.ordinary(params):
        return None
    with torch.no_grad():
        dtype = vec.wide(params[0].device)
        options = {"dtype": torch.float32} if set(map(_DTYPE, params)) <= set(precision.DROPPED) else {}
        return torch.stack([n.to(dtype) for n in torch._foreach_norm(params, 1, **options)]).nan_to_num(-1.0)


def check_forward(work: Work, before: Mark | None) -> None:
    """Refuse a forward that has written weights in a displaced pass that reports.

    Args:
        work: The work of the engine.
        before: The mark from before forward; None if the pass is not checked.

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
    """Run backward, and refuse a backward that writes weights, as an optimizer in a hook does.

    Args:
        work: The work of the engine.
        loss: The loss, shape ``()``, with its graph.
        inputs: The tensors whose gradients are computed; None for all leaves of the graph.
        displaced: Whether the weights are displaced; their displacement then restores them in any case.
        chosen: Whether the gradient of some parameters only is needed. Then the pass also notes whether backward runs
            another backward inside, as reentrant checkpointing does.

    Raises:
        UsageError: Backward has written weights, or has used the graph of an earlier pass. In the first step, weights
            are restored.
        ParameterError: Backward has changed the gradient of another trainable tensor.
    """
    saved = vec.clone(work.params) if work.first and not displaced else None
    before, gradients = Mark(work), others(work)
    reachable = leaves(loss) if chosen and work.reentrant is None else None
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
    check_others(gradients, work.loss_fn)
    if reachable is not None:
        work.reentrant = any(p.grad is not None and id(p) not in reachable for p in work.params)
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
    """Checks that hooks of parameters do not write weights while the caller runs forward and backward.

    A parameter without hooks is not checked, because forward may write it, as ``Embedding(max_norm=…)`` does.

    Args:
        work: The work of the engine.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._mark = Mark(work, each=True) if any(map(_hooked, work.params)) else None
        self._saved = vec.clone(work.params) if self._mark is not None and work.first else None

    def check(self) -> None:
        """Refuse a write to a parameter that has hooks.

        Raises:
            UsageError: Such a parameter was written. In the first step, all weights are restored.
        """
        changed = [] if self._mark is None else [i for i in self._mark.moved() if _hooked(self._work.params[i])]
        if changed:
            if self._saved is not None:
                put_back(self._work.params, self._saved)
            raise _moved(self._work, changed)
