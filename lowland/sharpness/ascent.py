"""Sharpness as the rise of the loss one ascent step away."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from lowland.core import checks
from lowland.core.cutting import Cutter
from lowland.core.geometry import L2
from lowland.core.loss import LossFn
from lowland.sharpness.estimates import weighted
from lowland.sharpness.surface import surface


def m_sharpness(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Iterable[Any],
    *,
    rho: float = 0.05,
    m: int = 128,
    cut: Cutter | None = None,
) -> Tensor:
    """The m-sharpness: the mean rise of the loss when each micro-batch moves the weights along its own gradient.

    This is the mean over micro-batches S of ``L_S(w + rho * g_S / ||g_S||) - L_S(w)``, with ``g_S`` the gradient of
    L_S. The function evaluates the model in evaluation mode (BatchNorm's running statistics, no dropout), and restores
    weights, ``.grad``, statistics and modes bit for bit.

    Args:
        model: The model, with the weights to evaluate.
        loss_fn: ``(model, batch) -> (B,) or Loss``; a mean, ``()``, only if no batch has more than m examples.
        batches: Batches to cut; each ends with a smaller micro-batch if m does not divide it. Micro-batches
            are weighted by their size, or by the count of their ``Loss``.
        rho: Radius of the ascent step, >= 0, in parameter norm.
        m: Examples in a micro-batch, >= 1. Sharpness grows as m falls, so compare only equal m and rho.
        cut: The object that cuts batches, as for :class:`lowland.Engine`; by default tensors along dimension 0.

    Returns:
        The mean rise, shape ``()``, on the model's device.

    Cost: One gradient and two forward passes over the batches; 2 P of memory beside the gradient.

    Reference: Foret, Kleiner, Mobahi, Neyshabur: Sharpness-Aware Minimization for Efficiently Improving
    Generalization. ICLR 2021, arXiv 2010.01412, section 4.2 (m-sharpness).
    """
    checks.at_least("rho", rho, 0, "0.05 is usual")
    checks.integer("m", m, 1, "128 is usual")
    rises: list[Tensor] = []
    weights: list[Tensor] = []
    with surface(model, loss_fn, cut) as around:
        for piece in around.pieces(batches, m):
            here = around.read(piece, grad=True)
            there = around.read(piece, L2().ascent(around.params, here.grad or [], rho))
            rises.append(there.loss - here.loss)
            weights.append(around.weight(piece, here))
    return weighted(rises, weights).value
