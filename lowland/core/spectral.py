"""A ball for every weight matrix, in the spectral norm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from lowland.core import checks, shards, vec
from lowland.core.geometry import Asked, Geometry, Radii
from lowland.core.precision import of_vectors
from lowland.core.vec import Vec

Layout: TypeAlias = Literal["outputs", "inputs", "rows"]
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ROWS = (nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True, kw_only=True)
class Spectral(Geometry):
    """A ball for every weight matrix, whose radius suits all widths: ``E = rho * sqrt(fan_out/fan_in) * U V^T``.

    ``G = U S V^T`` is the matrix of the gradient. E is the longest ascent ``<G, E>`` among all matrices of spectral
    norm ``<= rho * sqrt(fan_out/fan_in)``. So an input of root mean square 1 changes the layer's outputs by at most
    rho, in root mean square, at every width.

    A vector, such as a bias, is a matrix with one column: ``e = rho * sqrt(n) * g/||g||``, of root mean square rho. A
    convolution is one matrix with a row per output channel. Every row of an embedding is a vector of its own.

    ``U V^T`` is computed by Newton-Schulz iterations ``X <- (15 I - 10 X X^T + 3 (X X^T)^2) X / 8`` from
    ``X = G/||G||``. They need no singular value decomposition, for which a host would wait. They keep all singular
    values in [0, 1], so E never leaves the ball, and directions in which G is only rounding stay small.

    Args:
        iterations: How many, >= 1. With 12, singular values above ``||G||/1000`` come within 2 % of 1; each iteration
            takes three products of matrices.
        select: See :class:`Geometry`.

    Cost: ``3 * iterations`` products per matrix. A sharded matrix is gathered on every rank while it is computed.

    Differs: The exponents are lowland's reading of the condition of Yang, Simon and Bernstein for weights and updates,
    here applied to the perturbation. Haas et al., of whose paper only the abstract was available, scale SAM's
    perturbation layer by layer. A grouped convolution counts as one matrix. A layer of the user's own with inputs
    along dimension 0 of its weight, which lowland cannot know, has the wrong radius: leave it out by ``select``.

    Reference: Yang, Simon, Bernstein: A Spectral Condition for Feature Learning. 2023, arXiv 2310.17813. Haas, Xu,
    Cevher, Vankadara: muP^2: Effective Sharpness Aware Minimization Requires Layerwise Perturbation Scaling. NeurIPS
    2024, arXiv 2411.00075.
    """

    iterations: int = 12

    def __post_init__(self) -> None:
        checks.integer("iterations", self.iterations, 1, "12 is usual")

    def known(self, engine: Asked, grad: Vec) -> dict[str, Any]:
        """See :meth:`Geometry.known`."""
        return {"layouts": [layout(owner, g) for owner, g in zip(engine.owners, grad, strict=True)]}

    def ascent(self, params: Vec, grad: Vec, radii: Radii, *, layouts: list[Layout] | None = None) -> Vec:
        """See :meth:`Geometry.ascent`.

        Args:
            params: The current weights.
            grad: The gradient, one tensor per parameter.
            radii: The radius rho, or one radius per parameter.
            layouts: What dimension 0 of each tensor has; None for outputs everywhere.
        """
        each = radii if isinstance(radii, list) else [radii] * len(grad)
        laid = layouts or ["outputs"] * len(grad)
        return [self._of(g, radius, how) for g, radius, how in zip(grad, each, laid, strict=True)]

    def _of(self, grad: Tensor, radius: float, how: Layout) -> Tensor:
        """The displacement of one tensor."""
        if radius == 0 or grad.numel() == 0:
            return vec.zeros([grad])[0].to(grad.dtype)
        full = shards.gathered(grad)
        wide = full.to(of_vectors(full.dtype))
        wide = wide.transpose(0, 1) if how == "inputs" else wide
        matrix = wide.reshape(wide.shape[0], -1) if wide.dim() > 0 else wide.reshape(1, 1)
        outputs, inputs = matrix.shape
        if how == "rows":
            sizes = torch.linalg.vector_norm(matrix, dim=1, keepdim=True)
            result = matrix * (vec.inverse(sizes) * (radius * math.sqrt(inputs)))
        else:
            with torch.autocast(matrix.device.type, enabled=False):  # which may be around the whole step
                result = polar(matrix, self.iterations) * (radius * math.sqrt(outputs / inputs))
        result = result.reshape(wide.shape)
        result = (result.transpose(0, 1) if how == "inputs" else result).to(full.dtype)
        return shards.divided(torch.empty_like(full).copy_(result), grad)


def layout(owner: nn.Module, weight: Tensor) -> Layout:
    """What dimension 0 of a module's parameter has: outputs; inputs; or rows, of which an input takes one."""
    if isinstance(owner, _ROWS) and weight.dim() == 2:
        return "rows"
    return "inputs" if isinstance(owner, _TRANSPOSED) and weight.dim() > 1 else "outputs"


def polar(matrix: Tensor, iterations: int) -> Tensor:
    """``U V^T`` of the matrix ``U S V^T``, by Newton-Schulz iterations; zero for a matrix of zeros.

    Args:
        matrix: The matrix, floating-point.
        iterations: The number of iterations.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x * vec.inverse(torch.linalg.vector_norm(x))
    if x.shape[0] > 1:  # else its one singular value is 1 already
        for _ in range(iterations):
            a = x @ x.T
            x = torch.addmm(x, 3 * a @ a - 10 * a, x, beta=15 / 8, alpha=1 / 8)
    return x.T if tall else x
