"""The worst-case m-sharpness: the largest rise of the loss within a ball around the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core import checks, vec
from lowland.core.cutting import Cutter
from lowland.core.loss import LossFn
from lowland.core.vec import Vec
from lowland.sharpness.balls import Ball, Norm
from lowland.sharpness.estimates import Estimate, weighted
from lowland.sharpness.surface import Piece, Surface, surface


def worst_sharpness(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Iterable[Any],
    *,
    rho: float = 0.05,
    m: int = 128,
    norm: Norm = "l2",
    adaptive: bool = False,
    eta: float = 0.0,
    steps: int = 10,
    step_size: float | None = None,
    starts: int = 1,
    seed: int = 0,
    cut: Cutter | None = None,
) -> Estimate:
    """The mean over micro-batches S of ``max L_S(w + T u) - L_S(w)`` over ``||u|| <= rho``, by gradient ascent.

    ``T`` is 1, or ``|w| + eta`` if adaptive. The maximum is the largest loss that projected gradient ascent visits
    after its first step. So the value is a lower bound of the true maximum, except for rounding, and it is negative if
    every step lowers the loss. With ``norm="l2"`` and one step it is :func:`~lowland.sharpness.m_sharpness`. The model
    is in evaluation mode; weights, ``.grad``, buffers and modes are restored bit for bit.

    Args:
        model: The model, with the weights to evaluate.
        loss_fn: ``(model, batch) -> (B,) or Loss``; a mean, ``()``, only if no batch has more than m examples and all
            have equally many.
        batches: Batches to cut; each ends with a smaller micro-batch if m does not divide it. Micro-batches are
            weighted by their size, or by the count of their ``Loss``.
        rho: The radius, >= 0: in parameter norm for ``l2``, of each weight for ``linf``; if adaptive, relative to the
            size of the weights.
        m: Examples in a micro-batch, >= 1.
        norm: ``l2`` or ``linf``.
        adaptive: Measure displacements relative to the size of each weight.
        eta: A constant that is added to ``|w|``, >= 0.
        steps: The steps of the ascent, >= 1.
        step_size: The length of a step as a fraction of rho, > 0; None is ``min(1, 2 / steps)``.
        starts: The ascents, >= 1: the first starts at the weights, further ones at random points of the ball.
        seed: The seed of the random points, >= 0.
        cut: The object that cuts batches, as for :class:`lowland.Engine`; by default tensors along dimension 0.

    Returns:
        The mean rise, and its standard error with the micro-batches as a sample of all.

    Raises:
        ArgumentError: An argument breaks its rule, or there is no batch.
        LossError: The weight of a mean loss is not known.
        ParameterError: No parameter is trainable, or one is in bf16 or fp16.

    Cost: ``steps * starts`` gradients and ``starts`` forward passes over the batches; 4 P of memory beside the
    gradient.

    Differs: The ascent has steps of a fixed length; the paper uses Auto-PGD, which adapts it.

    Reference: Andriushchenko, Croce, Müller, Hein, Flammarion: A Modern Look at the Relationship between Sharpness and
    Generalization. ICML 2023, arXiv 2302.07011.
    """
    ball = Ball(rho=rho, norm=norm, adaptive=adaptive, eta=eta)
    checks.integer("m", m, 1, "128 is usual")
    checks.integer("steps", steps, 1, "10 steps suffice mostly; 1 is the m-sharpness")
    checks.integer("starts", starts, 1, "1 starts at the weights")
    checks.integer("seed", seed, 0, "number seeds from 0")
    if step_size is not None:
        checks.share("step_size", step_size, "it is a fraction of rho, such as 0.2", "a step must move")
    length = rho * (min(1.0, 2 / steps) if step_size is None else step_size)
    generator = torch.Generator().manual_seed(seed)
    rises: list[Tensor] = []
    weights: list[Tensor] = []
    means = False
    with surface(model, loss_fn, cut) as around:
        for piece in around.pieces(batches, m):
            here = around.read(piece, grad=True)
            highest = None
            for start in range(starts):
                u = vec.zeros(around.params) if start == 0 else ball.inside(around.params, generator)
                grad = here.grad if start == 0 else _gradient(around, ball, piece, u)
                peak = _climb(around, ball, piece, u, grad or [], steps, length)
                highest = peak if highest is None else torch.maximum(highest, peak)  # NaN if one is
            rises.append(highest - here.loss)  # type: ignore[operator]
            weights.append(around.weight(piece, here))
            means |= here.divisor is None
    return weighted(rises, weights, even=means)


def _gradient(around: Surface, ball: Ball, piece: Piece, u: Vec) -> Vec | None:
    return around.read(piece, ball.scaled(around.params, u), grad=True).grad


def _climb(around: Surface, ball: Ball, piece: Piece, u: Vec, grad: Vec, steps: int, length: float) -> Tensor:
    """The largest loss after a step of the ascent from ``u``, where the gradient is ``grad``; shape ``()``."""
    highest = None
    for step in range(1, steps + 1):
        u = ball.ascend(around.params, u, grad, length)
        there = around.read(piece, ball.scaled(around.params, u), grad=step < steps)
        highest = there.loss if highest is None else torch.maximum(highest, there.loss)
        grad = there.grad or []
    return highest  # type: ignore[return-value]
