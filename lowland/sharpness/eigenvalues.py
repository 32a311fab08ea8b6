"""Eigenvalues at an end of the Hessian's spectrum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from lowland.core import checks
from lowland.core.cutting import Cutter
from lowland.core.errors import ArgumentError
from lowland.core.loss import LossFn
from lowland.sharpness.hessian import DENSE, Hessian, NotFiniteError, hessian, operator

Which: TypeAlias = Literal["largest", "smallest", "magnitude"]
_SCIPY = {"largest": "LA", "smallest": "SA", "magnitude": "LM"}


class Eigenvalues(NamedTuple):
    """Eigenvalues of the Hessian.

    Attributes:
        values: The eigenvalues, shape ``(k,)``: the largest first, the smallest first, or the largest magnitude first.
        residuals: ``||H v - value v||`` of their unit eigenvectors, shape ``(k,)``. An eigenvalue of the Hessian is at
            most that far from the value, except for the rounding of the products.
    """

    values: Tensor
    residuals: Tensor


def hessian_eigenvalues(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Iterable[Any],
    *,
    k: int = 1,
    which: Which = "largest",
    tol: float = 1e-4,
    iterations: int = 1000,
    seed: int = 0,
    cut: Cutter | None = None,
) -> Eigenvalues:
    """The k eigenvalues at an end of the spectrum of the Hessian of the mean loss, by SciPy's ``eigsh`` (ARPACK).

    Up to 64 weights, the whole Hessian is computed instead. The model is in evaluation mode; weights, ``.grad``,
    buffers and modes are restored bit for bit.

    Args:
        model: The model, with the weights to evaluate.
        loss_fn: ``(model, batch) -> (B,) or Loss``; a mean, ``()``, only for batches of one size.
        batches: Batches, over all of which the loss is averaged; they are kept in memory, and each product with the
            Hessian sees them one after the other.
        k: How many eigenvalues, from 1 to the number of weights.
        which: ``largest`` algebraically, ``smallest`` algebraically, or of the largest ``magnitude``.
        tol: The relative accuracy at which ARPACK stops, > 0. In fp32 the products have an error near 1e-6.
        iterations: The most restarts of ARPACK, >= 1.
        seed: The seed of ARPACK's first vector, >= 0.
        cut: The object that takes batches apart, as for :class:`lowland.Engine`.

    Returns:
        The eigenvalues and their residuals on the model's device; all NaN if the Hessian is not finite.

    Raises:
        ArgumentError: An argument breaks its rule, there is no batch, or ARPACK has not converged.
        LossError: The weight of a mean loss is not known.
        ParameterError: No parameter is trainable, or one is in bf16 or fp16.
        MissingExtraError: curvlinops is not installed.

    Cost: Some tens of products with the Hessian; each is near two gradients over the batches. Memory of about
    ``max(20, 2 k)`` vectors on the host.

    Reference: Lehoucq, Sorensen, Yang: ARPACK Users' Guide. SIAM 1998. Ghorbani, Krishnan, Xiao: An Investigation into
    Neural Net Optimization via Hessian Eigenvalue Density. ICML 2019, arXiv 1901.10159.
    """
    checks.integer("k", k, 1, "1 is the largest eigenvalue")
    checks.one_of("which", which, tuple(_SCIPY))
    checks.integer("iterations", iterations, 1, "1000 is usual")
    checks.integer("seed", seed, 0, "number seeds from 0")
    checks.at_least("tol", tol, 1e-14, "1e-4 is usual")
    with hessian(model, loss_fn, batches, cut) as matrix:
        if k > matrix.size:
            raise ArgumentError(
                f"k must be <= {matrix.size}, the number of trainable weights, but is {k}; take fewer eigenvalues"
            )
        try:
            values, vectors = _dense(matrix) if matrix.size <= DENSE or k == matrix.size else _arpack(
                matrix, k, which, tol, iterations, seed
            )  # fmt: skip
            order = _order(values, which)[:k]
            values, vectors = values[order], vectors[:, order]
            residuals = (matrix.times(vectors) - vectors * values).norm(dim=0)
        except NotFiniteError:
            values = residuals = torch.full((k,), torch.nan, dtype=matrix.dtype, device=matrix.device)
    return Eigenvalues(values, residuals)


def _order(values: Tensor, which: Which) -> Tensor:
    if which == "magnitude":
        return values.abs().argsort(descending=True)
    return values.argsort(descending=which == "largest")


def _dense(matrix: Hessian) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(matrix.dense())
    return values, vectors


def _arpack(matrix: Hessian, k: int, which: Which, tol: float, iterations: int, seed: int) -> tuple[Tensor, Tensor]:
    linear = operator(matrix).to_scipy()
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

    start = torch.randn(matrix.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if not bool(matrix.times(start).any()):  # the Hessian is zero, which ARPACK refuses
        unit = torch.eye(matrix.size, k, dtype=matrix.dtype, device=matrix.device)
        return torch.zeros(k, dtype=matrix.dtype, device=matrix.device), unit
    try:
        values, vectors = eigsh(linear, k=k, which=_SCIPY[which], tol=tol, maxiter=iterations, v0=start.numpy())
    except ArpackNoConvergence as error:
        raise ArgumentError(
            f"iterations must suffice for {k} eigenvalues, but after {iterations} ARPACK has {len(error.eigenvalues)} "
            f"with tol {tol:g}; allow more iterations, or a larger tol"
        ) from None
    like = torch.empty((), dtype=matrix.dtype, device=matrix.device)
    return torch.as_tensor(values).to(like), torch.as_tensor(vectors).to(like)
