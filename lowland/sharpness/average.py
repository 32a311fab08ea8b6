"""The average-case m-sharpness: the mean rise of the loss over random displacements."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core import checks, vec
from lowland.core.cutting import Cutter
from lowland.core.loss import LossFn
from lowland.sharpness.balls import Ball, Norm
from lowland.sharpness.estimates import Estimate, equal, weighted
from lowland.sharpness.surface import surface


def average_sharpness(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Iterable[Any],
    *,
    rho: float = 0.05,
    m: int = 128,
    norm: Norm = "l2",
    adaptive: bool = False,
    eta: float = 0.0,
    directions: int = 4,
    seed: int = 0,
    cut: Cutter | None = None,
) -> Estimate:
    """The mean of ``L_S(w + T u) - L_S(w)`` over micro-batches S and random points u of the border of a ball.

    For ``l2``, u is uniform on the sphere of radius rho: a Gaussian direction of that length. For ``linf``, every entry
    of u is ``rho`` or ``-rho``. ``T`` is 1, or ``|w| + eta`` if adaptive. Every micro-batch draws directions of its
    own, and takes each with both signs, so that the slope at the weights cancels out of the mean. On a quadratic over n
    weights the l2 value is ``rho^2 / (2 n)`` times the trace of the Hessian. The model is in evaluation mode; weights,
    ``.grad``, buffers and modes are restored bit for bit.

    Args:
        model: The model, with the weights to evaluate.
        loss_fn: ``(model, batch) -> (B,) or Loss``; a mean, ``()``, only if no batch has more than m examples and all
            have equally many.
        batches: Batches to cut; each ends with a smaller micro-batch if m does not divide it. Micro-batches are
            weighted by their size, or by the count of their ``Loss``.
        rho: The radius, >= 0: in parameter norm for ``l2``, of each weight for ``linf``; if adaptive, relative to the
            size of the weights.
        m: Examples in a micro-batch, >= 1. It has no influence on the expectation, only on the error.
        norm: ``l2`` or ``linf``.
        adaptive: Measure displacements relative to the size of each weight.
        eta: A constant that is added to ``|w|``, >= 0.
        directions: The random directions of each micro-batch, >= 1.
        seed: The seed of the displacements, >= 0.
        cut: The object that cuts batches, as for :class:`lowland.Engine`; by default tensors along dimension 0.

    Returns:
        The mean rise and its standard error. The error covers directions and micro-batches, with the micro-batches as
        a sample of all; with one micro-batch it covers the directions only, and is NaN for one direction.

    Raises:
        ArgumentError: An argument breaks its rule, or there is no batch.
        LossError: The weight of a mean loss is not known.
        ParameterError: No parameter is trainable, or one is in bf16 or fp16.

    Cost: ``2 directions + 1`` forward passes over the batches; 2 P of memory.

    Differs: The paper draws each entry of u with the standard deviation rho, so that its length is near
    ``rho * sqrt(n)``; here rho is the length, so that one rho serves the worst and the average case.

    Reference: Andriushchenko, Croce, Müller, Hein, Flammarion: A Modern Look at the Relationship between Sharpness and
    Generalization. ICML 2023, arXiv 2302.07011.
    """
    ball = Ball(rho=rho, norm=norm, adaptive=adaptive, eta=eta)
    checks.integer("m", m, 1, "128 is usual")
    checks.integer("directions", directions, 1, "4 are usual")
    checks.integer("seed", seed, 0, "number seeds from 0")
    generator = torch.Generator().manual_seed(seed)
    rises: list[Tensor] = []
    weights: list[Tensor] = []
    means, within = False, None
    with surface(model, loss_fn, cut) as around:
        for piece in around.pieces(batches, m):
            here = around.read(piece)
            drawn = []
            for _ in range(directions):
                at = ball.scaled(around.params, ball.border(around.params, generator))
                both = [around.read(piece, vec.scale(at, sign)).loss - here.loss for sign in (1.0, -1.0)]
                drawn.append((both[0] + both[1]) / 2)
            within = equal(drawn)
            rises.append(within.value)
            weights.append(around.weight(piece, here))
            means |= here.divisor is None
    over_pieces = weighted(rises, weights, even=means)
    return over_pieces if len(rises) > 1 or within is None else within
