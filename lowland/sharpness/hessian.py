"""Products of vectors with the Hessian of the mean loss, as a linear operator of curvlinops.

curvlinops' own ``HessianLinearOperator`` takes batches ``(X, y)`` and a torch loss with a reduction. lowland's loss
functions take a whole batch, of any kind, and return one loss per example, or a sum and a count that differs between
batches. So the product is computed here, by differentiating twice, and curvlinops and SciPy compute with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lowland.core.cutting import Cutter
from lowland.core.errors import MissingExtraError
from lowland.core.loss import LossFn, Terms, divisor
from lowland.core.transfer import scalar
from lowland.core.vec import Vec, wide
from lowland.sharpness.surface import Piece, Surface, surface

DENSE = 64  # up to this number of weights all columns of the Hessian are computed


class NotFiniteError(Exception):
    """A product with the Hessian has an entry that is infinite or NaN."""


class Hessian:
    """The Hessian of the mean loss over batches, with respect to the trainable parameters; made by :func:`hessian`.

    Args:
        around: The loss around the weights.
        pieces: The batches.

    Attributes:
        size: The number of weights n.
        dtype: The dtype of the products, that of the first parameter.
        device: The device of the products.
    """

    def __init__(self, around: Surface, pieces: list[Piece]) -> None:
        self._around, self._pieces, self._params = around, pieces, around.params
        self.size = sum(map(torch.numel, self._params))
        self.dtype, self.device = self._params[0].dtype, around.device
        around.gradient(pieces)  # checks the loss function: shapes, weights of means, parameters it depends on

    def times(self, columns: Tensor) -> Tensor:
        """The product with a matrix, or with a vector.

        Args:
            columns: Shape ``(n, k)`` or ``(n,)``.

        Returns:
            The product in the same shape.

        Raises:
            NotFiniteError: An entry of the columns or of the product is infinite or NaN.
        """
        matrix = columns.reshape(self.size, -1).to(self.device, self.dtype)  # (n, k)
        vectors = [self._split(column) for column in matrix.unbind(1)]
        sums = torch.zeros_like(matrix)
        count = torch.zeros((), dtype=wide(self.device), device=self.device)
        for piece in self._pieces:
            # The fused kernels of attention have no second derivative.
            with sdpa_kernel(SDPBackend.MATH), self._around.graph(piece) as values:
                total, weight = self._total(piece, values)
                sums += self._products(total, vectors)
            count += weight
        product = sums / divisor(sums.abs().sum().to(count.dtype), count).to(self.dtype)
        if not bool(torch.isfinite(product).all() & torch.isfinite(matrix).all()):
            raise NotFiniteError
        return product.reshape(columns.shape)

    def dense(self) -> Tensor:
        """All of the Hessian, shape ``(n, n)``, symmetric to the last bit."""
        matrix = self.times(torch.eye(self.size))
        return (matrix + matrix.T) / 2

    def _split(self, column: Tensor) -> Vec:
        sizes = list(map(torch.numel, self._params))
        return [part.view_as(p) for part, p in zip(torch.split(column, sizes), self._params, strict=True)]

    def _total(self, piece: Piece, values: Terms) -> tuple[Tensor, Tensor]:
        """The summed loss of a piece and what it weighs."""
        size = values.count
        if size is None:
            size = float(self._around.work.batches.size(piece.batch))
        count = scalar(size, wide(self.device), self.device)
        if values.total is not None:
            return values.total, count
        return values.mean * count.to(values.mean.dtype), count

    def _products(self, total: Tensor, vectors: list[Vec]) -> Tensor:
        """The products of the vectors with the Hessian of ``total``, shape ``(n, k)``."""
        grads = torch.autograd.grad(total, self._params, create_graph=True, materialize_grads=True)
        columns = []
        for number, v in enumerate(vectors, 1):
            inner = torch.stack([(g * e).sum().to(self.dtype) for g, e in zip(grads, v, strict=True)]).sum()
            if not inner.requires_grad:  # the loss is linear in the weights
                columns.append(torch.zeros(self.size, dtype=self.dtype, device=self.device))
                continue
            again = number < len(vectors)
            second = torch.autograd.grad(inner, self._params, retain_graph=again, materialize_grads=True)
            columns.append(torch.cat([t.detach().reshape(-1).to(self.dtype) for t in second]))
        return torch.stack(columns, 1)


@contextmanager
def hessian(model: nn.Module, loss_fn: LossFn, batches: Iterable[Any], cut: Cutter | None = None) -> Iterator[Hessian]:
    """The Hessian of the mean loss over all batches, which are kept until the end of the context.

    The arguments and errors are those of :func:`~lowland.sharpness.surface.surface`. A mean loss, ``()``, is accepted
    for batches of one size.
    """
    with surface(model, loss_fn, cut) as around:
        yield Hessian(around, list(around.pieces(batches)))


def operator(matrix: Hessian) -> Any:
    """The Hessian as a ``PyTorchLinearOperator``, for the estimators of curvlinops and, by ``to_scipy``, of SciPy.

    Raises:
        MissingExtraError: curvlinops is not installed.
    """
    base = curvlinops()._torch_base.PyTorchLinearOperator

    class Operator(base):  # type: ignore[misc, valid-type]
        SELF_ADJOINT = True
        device, dtype = matrix.device, matrix.dtype

        def _matmat(self, columns: list[Tensor]) -> list[Tensor]:
            return [matrix.times(columns[0])]

    return Operator([(matrix.size,)], [(matrix.size,)])


def curvlinops() -> Any:
    """The package curvlinops.

    Raises:
        MissingExtraError: It is not installed.
    """
    with warnings.catch_warnings():
        # linear_operator, which curvlinops imports, still uses torch.jit.script
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        try:
            import curvlinops as package
        except ImportError:
            raise MissingExtraError("curvlinops-for-pytorch", "curvature") from None
    return package
