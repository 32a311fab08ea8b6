"""The critical sharpness: the curvature along one direction, from forward passes alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from lowland.core import checks, vec
from lowland.core.cutting import Cutter
from lowland.core.errors import ArgumentError
from lowland.core.loss import LossFn
from lowland.core.vec import Vec
from lowland.sharpness.surface import Surface, surface

DOUBLINGS = 60  # the most doublings or halvings of the first learning rate


class Critical(NamedTuple):
    """A critical learning rate and the sharpness that it stands for.

    Attributes:
        sharpness: ``2 / rate``; 0 if the loss falls at every rate; NaN if it falls at none or by no more than rounding,
            if there is no direction, or if the loss is not finite.
        rate: The critical learning rate, the middle of ``low`` and ``high``; infinite if the loss falls at every rate.
        low: The largest rate below ``high`` at which the loss was below that at the weights.
        high: A rate at which the loss was not below that at the weights, or not a number.
        passes: The forward passes over all batches.
    """

    sharpness: float
    rate: float
    low: float
    high: float
    passes: int


def critical_sharpness(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Iterable[Any],
    *,
    direction: Vec | None = None,
    first: float = 1.0,
    tolerance: float = 0.01,
    cut: Cutter | None = None,
) -> Critical:
    """``2 / c`` for the critical learning rate c, the smallest at which a step along ``-direction`` raises the loss.

    The paper defines ``c = min {eta > 0: L(w - eta d) > L(w)}`` for the update direction d. The search doubles
    ``first`` while the loss is below L(w), or halves it while it is not, and then bisects. So c is a crossing of L(w),
    and the smallest one if the loss crosses L(w) only once within the search. On a quadratic with the Hessian H and
    the gradient g, the value is ``d^T H d / (g^T d)``: for d = g the curvature along the gradient, which is at most the
    largest eigenvalue. The model is in evaluation mode; weights, ``.grad``, buffers and modes are restored bit for bit.

    Args:
        model: The model, with the weights to evaluate.
        loss_fn: ``(model, batch) -> (B,) or Loss``; a mean, ``()``, only for batches of one size.
        batches: Batches, over all of which the loss is averaged; they are kept in memory.
        direction: The direction d, such as the update of an optimizer divided by its learning rate, one tensor for each
            trainable parameter; None is the gradient of the mean loss. The unit of the rate is that of ``w / d``.
        first: The first learning rate of the search, > 0; any value finds the crossing, a near one sooner.
        tolerance: The search ends when ``1 - low / high`` is at most this, in (0, 1], or when no floating-point number
            lies between low and high.
        cut: The object that takes batches apart, as for :class:`lowland.Engine`.

    Raises:
        ArgumentError: An argument breaks its rule, or there is no batch.
        LossError: The weight of a mean loss is not known.
        ParameterError: No parameter is trainable, or one is in bf16 or fp16.

    Cost: One gradient without ``direction``, and some 10 to 20 forward passes over the batches, more if ``first`` is
    far from c; 2 P of memory. Where the loss falls by no more than 8 units of rounding, as in fp32 near a minimum, the
    value is NaN; a model in fp64 sees further.

    Differs: The paper measures during a training, along the update of its optimizer; the default here is the gradient
    on the given batches. The paper's tolerance is 1/16.

    Reference: Kalra, Gagnon-Audet, Gromov, Mediratta, Niu, Miller, Shvartsman: A Scalable Measure of Loss Landscape
    Curvature for Analyzing the Training Dynamics of LLMs. 2026, arXiv 2601.16979, section 2.
    """
    checks.share("tolerance", tolerance, "0.01 is usual", "a bisection never ends at equality")
    checks.at_least("first", first, 0, "1 is usual")
    if first == 0:
        raise ArgumentError("first must be > 0, but is 0; 1 is usual")
    with surface(model, loss_fn, cut) as around:
        pieces = list(around.pieces(batches))
        if direction is None:
            here, d = around.gradient(pieces)
        else:
            here, d = around.mean(pieces), _fitting(direction, around)
        if not math.isfinite(here) or not 0 < float(vec.norm(d)) < math.inf:
            return Critical(math.nan, math.nan, math.nan, math.nan, 0)

        search = _Search(lambda rate: here - around.mean(pieces, vec.scale(d, -rate)))
        found = search.run(float(first), tolerance)
    rounding = 8 * torch.finfo(around.params[0].dtype).eps * abs(here)
    return found if search.deepest > rounding else found._replace(sharpness=math.nan, rate=math.nan)


def _fitting(direction: Vec, around: Surface) -> Vec:
    shapes, own = [t.shape for t in direction], [p.shape for p in around.params]
    if shapes != own:
        raise ArgumentError(
            f"direction must have one tensor for each of {len(own)} trainable parameters, in their shapes, but has "
            f"{[tuple(shape) for shape in shapes[:3]]}; pass the updates in the order of model.parameters()"
        )
    return [t.detach() for t in direction]


class _Search:
    """Search by doubling or halving and then by bisection.

    Args:
        fall: How much the loss at a rate is below that at the weights; NaN if it is not a number.

    Attributes:
        passes: How often ``fall`` was called.
        deepest: The largest fall so far.
    """

    def __init__(self, fall: Callable[[float], float]) -> None:
        self._fall, self.passes, self.deepest = fall, 0, 0.0

    def falls(self, rate: float) -> bool:
        """Whether the loss at a rate is below that at the weights."""
        fall = self._fall(rate)
        self.passes += 1
        self.deepest = max(self.deepest, fall)  # NaN is not larger
        return fall > 0

    def run(self, first: float, tolerance: float) -> Critical:
        """The critical learning rate."""
        rate = first
        lower = self.falls(rate)
        for _ in range(DOUBLINGS):
            following = rate * 2 if lower else rate / 2
            if self.falls(following) != lower:
                break
            rate = following
        else:
            if lower:
                return Critical(0.0, math.inf, rate, math.inf, self.passes)
            return Critical(math.nan, math.nan, 0.0, rate, self.passes)
        low, high = sorted((rate, following))
        while 1 - low / high > tolerance:
            middle = (low + high) / 2
            if not low < middle < high:  # no floating-point number lies between them
                break
            low, high = (middle, high) if self.falls(middle) else (low, middle)
        middle = (low + high) / 2
        return Critical(2 / middle, middle, low, high, self.passes)
