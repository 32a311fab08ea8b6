"""The spectral density of the Hessian: which fraction of its eigenvalues is where."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lowland.core import checks
from lowland.core.cutting import Cutter
from lowland.core.loss import LossFn
from lowland.executors.modes import branch
from lowland.sharpness.hessian import DENSE, Hessian, NotFiniteError, curvlinops, hessian, operator


class Density(NamedTuple):
    """A spectral density as weighted points: the estimate is the mean over the rows.

    Attributes:
        nodes: Positions on the axis of eigenvalues, shape ``(repeats, depth)``.
        weights: The fraction of the eigenvalues that each node stands for, in the same shape; each row sums to 1.
    """

    nodes: Tensor
    weights: Tensor

    def moment(self, power: int) -> Tensor:
        """The estimated mean of ``eigenvalue ** power``, shape ``()``; ``moment(1) * n`` estimates the trace."""
        return (self.weights * self.nodes**power).sum(1).mean()

    def smoothed(self, points: int = 512, width: float = 0.01, margin: float = 0.05) -> tuple[Tensor, Tensor]:
        """The density with a Gaussian for each node, so that it can be drawn.

        Args:
            points: The number of positions, >= 2.
            width: The standard deviation of the Gaussian, as a fraction of the range of the nodes, > 0.
            margin: How far the positions extend over the nodes at either end, as a fraction of their range.

        Returns:
            Positions and densities, each of shape ``(points,)``. The densities integrate to 1 over all positions.
        """
        low, high = self.nodes.min(), self.nodes.max()
        extent = torch.where(high > low, high - low, high.abs().clamp_min(1.0))
        grid = torch.linspace(0, 1, points, dtype=low.dtype, device=low.device)
        grid = low - margin * extent + grid * (1 + 2 * margin) * extent
        sigma = width * extent
        bumps = torch.exp(-0.5 * ((grid - self.nodes[..., None]) / sigma).square())  # (repeats, depth, points)
        bumps = bumps / (sigma * (2 * torch.pi) ** 0.5)
        return grid, (self.weights[..., None] * bumps).sum(1).mean(0)


def hessian_density(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Iterable[Any],
    *,
    depth: int = 40,
    repeats: int = 3,
    seed: int = 0,
    cut: Cutter | None = None,
) -> Density:
    """The spectral density ``1/n * sum of delta(x - eigenvalue)`` of the Hessian of the mean loss.

    This is stochastic Lanczos quadrature with curvlinops: for each of ``repeats`` random unit vectors v, the nodes and
    weights reproduce the moments ``v^T H^j v`` for j < 2 depth, in exact arithmetic. Up to 64 weights, all eigenvalues
    are computed instead, and there is one row of equal weights. The model is in evaluation mode; weights, ``.grad``,
    buffers and modes are restored bit for bit.

    Args:
        model: The model, with the weights to evaluate.
        loss_fn: ``(model, batch) -> (B,) or Loss``; a mean, ``()``, only for batches of one size.
        batches: Batches, over all of which the loss is averaged; they are kept in memory.
        depth: The Lanczos steps, >= 2: the number of nodes for each vector.
        repeats: The random vectors, >= 1.
        seed: The seed of the vectors, >= 0.
        cut: The object that takes batches apart, as for :class:`lowland.Engine`.

    Returns:
        Nodes and weights; all NaN if the Hessian is not finite.

    Raises:
        ArgumentError: An argument breaks its rule, or there is no batch.
        LossError: The weight of a mean loss is not known.
        ParameterError: No parameter is trainable, or one is in bf16 or fp16.
        MissingExtraError: curvlinops is not installed.

    Cost: ``depth * repeats`` products with the Hessian; each is near two gradients over the batches.

    Differs: Lanczos vectors are not orthogonalized anew, as in Papyan (2020), so an outer eigenvalue may appear as
    several close nodes, which share its weight. If the vectors span no more directions, the depth of all rows is halved
    until they do.

    Reference: Papyan: Traces of Class/Cross-Class Structure Pervade Deep Learning Spectra. JMLR 2020, algorithm 2.
    Ghorbani, Krishnan, Xiao: An Investigation into Neural Net Optimization via Hessian Eigenvalue Density. ICML 2019,
    arXiv 1901.10159.
    """
    checks.integer("depth", depth, 2, "40 nodes are usual")
    checks.integer("repeats", repeats, 1, "3 are usual")
    checks.integer("seed", seed, 0, "number seeds from 0")
    with hessian(model, loss_fn, batches, cut) as matrix:
        try:
            return _exact(matrix) if matrix.size <= DENSE else _lanczos(matrix, depth, repeats, seed)
        except NotFiniteError:
            nothing = torch.full((repeats, depth), torch.nan, dtype=matrix.dtype, device=matrix.device)
            return Density(nothing, nothing)


def _exact(matrix: Hessian) -> Density:
    values = torch.linalg.eigvalsh(matrix.dense())[None]
    return Density(values, torch.full_like(values, 1 / matrix.size))


def _lanczos(matrix: Hessian, depth: int, repeats: int, seed: int) -> Density:
    linear = operator(matrix)
    curvlinops()
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    depth = min(depth, matrix.size)
    while True:
        with branch(matrix.device, seed):  # curvlinops draws from torch's global random numbers
            rows = [_row(fast_lanczos, linear, depth) for _ in range(repeats)]
        known = [row for row in rows if row is not None]
        if len(known) == repeats:
            return Density(torch.stack([values for values, _ in known]), torch.stack([w for _, w in known]))
        depth //= 2


def _row(fast_lanczos: Any, linear: Any, depth: int) -> tuple[Tensor, Tensor] | None:
    """Nodes and weights of one random vector; None if it and its products span fewer than ``depth`` directions."""
    try:
        values, vectors = fast_lanczos(linear, depth)
    except NotFiniteError:
        if depth == 1:
            raise
        return None
    return values, vectors[0].square()
