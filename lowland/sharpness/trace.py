"""The trace of the Hessian: the sum of its eigenvalues."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lowland.core import checks
from lowland.core.cutting import Cutter
from lowland.core.loss import LossFn
from lowland.executors.modes import branch
from lowland.sharpness.estimates import Estimate, equal
from lowland.sharpness.hessian import Hessian, NotFiniteError, curvlinops, hessian, operator


def hessian_trace(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Iterable[Any],
    *,
    samples: int = 30,
    seed: int = 0,
    cut: Cutter | None = None,
) -> Estimate:
    """The trace of the Hessian of the mean loss, by Hutchinson's estimator with curvlinops.

    It is the mean of ``v^T H v`` over random vectors v of entries 1 and -1. A model with at most ``samples`` weights
    gets the exact trace, with the error 0. The model is in evaluation mode; weights, ``.grad``, buffers and modes are
    restored bit for bit.

    Args:
        model: The model, with the weights to evaluate.
        loss_fn: ``(model, batch) -> (B,) or Loss``; a mean, ``()``, only for batches of one size.
        batches: Batches, over all of which the loss is averaged; they are kept in memory.
        samples: The random vectors, >= 2.
        seed: The seed of the vectors, >= 0.
        cut: The object that takes batches apart, as for :class:`lowland.Engine`.

    Returns:
        The estimated trace and its standard error over the random vectors, for these examples; NaN if the Hessian is
        not finite.

    Raises:
        ArgumentError: An argument breaks its rule, or there is no batch.
        LossError: The weight of a mean loss is not known.
        ParameterError: No parameter is trainable, or one is in bf16 or fp16.
        MissingExtraError: curvlinops is not installed.

    Cost: ``samples`` products with the Hessian; each is near two gradients over the batches.

    Reference: Hutchinson: A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian Smoothing Splines.
    Communications in Statistics 1989. Yao, Gholami, Keutzer, Mahoney: PyHessian. IEEE Big Data 2020, arXiv 1912.07145.
    """
    checks.integer("samples", samples, 2, "30 are usual, and an error needs two")
    checks.integer("seed", seed, 0, "number seeds from 0")
    with hessian(model, loss_fn, batches, cut) as matrix:
        try:
            return _exact(matrix) if matrix.size <= samples else _estimated(matrix, samples, seed)
        except NotFiniteError:
            nothing = torch.full((), torch.nan, dtype=matrix.dtype, device=matrix.device)
            return Estimate(nothing, nothing)


def _exact(matrix: Hessian) -> Estimate:
    value = matrix.dense().trace()
    return Estimate(value, torch.zeros_like(value))


def _estimated(matrix: Hessian, samples: int, seed: int) -> Estimate:
    linear, estimate = operator(matrix), curvlinops().hutchinson_trace
    with branch(matrix.device, seed):  # curvlinops draws from torch's global random numbers
        # one vector at a time, because the values of the vectors give the standard error
        return equal([estimate(linear, num_matvecs=1) for _ in range(samples)])
