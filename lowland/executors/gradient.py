"""The gradient of a pass, from what backward has left in the parameters, and what must not have happened to it."""

from __future__ import annotations

import operator
from typing import cast

import torch
from torch import Tensor

from lowland.core import precision, vec
from lowland.core.errors import LossError, ParameterError
from lowland.core.probe import Probe
from lowland.core.vec import Vec
from lowland.executors.base import Work
from lowland.executors.kept import version

_LAYOUT = operator.attrgetter("layout")  # map() with it takes a tenth of the time of a Python loop


def gradient(work: Work, probe: Probe, grads: list[Tensor | None]) -> tuple[Vec, list[bool] | None]:
    """Average a gradient over the ranks, fill it up with zeros, and divide it by the loss scale.

    Args:
        work: The model and the step.
        probe: The probe that the pass answers.
        grads: What backward has left for each parameter; None for one that it has not reached, or that is not chosen.

    Returns:
        The gradient, and which parameters backward has reached, None for all.

    Raises:
        ParameterError: A gradient is sparse.
    """
    if work.replicas.groups:
        grads = work.replicas.average(grads, probe.sync, probe.wrt)
    if work.step.watched:
        work.ownership.check(grads)
    present = [g for g in grads if g is not None] if type(None) in map(type, grads) else cast(Vec, grads)
    if any(layout is not torch.strided for layout in set(map(_LAYOUT, present))):
        raise ParameterError(
            "gradients must be dense, but a parameter's gradient is sparse; make its module with sparse=False"
        )
    reached = None
    if len(present) == len(grads):
        result = present
    else:
        reached = [g is not None for g in grads]
        missing = iter(vec.zeros([p for g, p in zip(grads, work.params, strict=True) if g is None]))
        result = [next(missing) if g is None else g for g in grads]
    work.step.reach(reached)
    if work.low:
        precision.widen_(result)
    scale = work.scale()
    if scale is not None:
        work.step.check(vec.finite(result))
        vec.div_(result, scale)
    return result, reached


class Left:
    """The gradients after a part of a batch, of which one stands for all.

    Args:
        params: The parameters.
    """

    def __init__(self, params: Vec) -> None:
        self._param = next((p for p in params if p.grad is not None), None)
        self._grad = None if self._param is None else self._param.grad
        self._version = version(self._grad)

    def check(self) -> None:
        """Refuse a forward of the next part that has taken the gradients away or changed them.

        Raises:
            LossError: It has.
        """
        if self._param is not None and (self._param.grad is not self._grad or version(self._grad) != self._version):
            raise LossError(
                "loss_fn must leave the gradients of earlier parts of the batch alone, but has changed .grad, as by "
                "optimizer.zero_grad() or loss.backward() inside of it; use torch.autograd.grad for gradients that the "
                "loss itself needs, or leave micro_batch out"
            )


def check_left(work: Work, probe: Probe, grads: list[Tensor | None]) -> None:
    """Refuse a pass that has left no gradient at all, where all parameters are differentiated.

    Ranks that share a batch are left out: one of them may reach nothing.

    Raises:
        LossError: There is no gradient.
    """
    if probe.grad and probe.wrt is None and not work.replicas.groups and all(g is None for g in grads):
        raise LossError(
            "a pass must leave its gradient in .grad of the engine's parameters, but left none: the loss depends on "
            "none of them, backward was not run before p.adopt(loss), or zero_grad() or a hook has taken the gradients "
            "away; run backward in the pass, and leave .grad where it is until the step is complete"
        )
