"""The gradient of a pass, from what backward has left in the parameters."""

from __future__ import annotations

import operator
from typing import cast

import torch
from torch import Tensor

from lowland.core import precision, vec
from lowland.core.errors import ParameterError
from lowland.core.probe import Probe
from lowland.core.vec import Vec
from lowland.executors.base import Work

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
