"""Slices of the loss: along a random direction, in a random plane, and between two minima."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lowland.core import checks, vec
from lowland.core.cutting import Cutter
from lowland.core.errors import ArgumentError, ParameterError
from lowland.core.loss import LossFn
from lowland.core.transfer import to_device
from lowland.core.vec import Vec
from lowland.sharpness.surface import surface


class Slice(NamedTuple):
    """Mean losses on a grid of displacements.

    Attributes:
        positions: The coordinates of each axis, shape ``(points,)``.
        losses: The mean losses, shape ``(points,)`` of a line, ``(points, points)`` of a plane, with the first
            direction along the rows. A loss that is not finite stays so.
    """

    positions: Tensor
    losses: Tensor


def random_direction(params: Vec, generator: torch.Generator) -> Vec:
    """A Gaussian direction, in which each filter is as long as that filter of the weights.

    A filter is what belongs to one output: a row of a matrix, or ``weight[i]`` of a convolution. Vectors, which are
    biases and the parameters of normalizations, do not move.

    Args:
        params: The weights.
        generator: The random numbers, on the host.

    Reference: Li, Xu, Taylor, Studer, Goldstein: Visualizing the Loss Landscape of Neural Nets. NeurIPS 2018, arXiv
    1712.09913, section 4.
    """
    direction = []
    for p in params:
        drawn = to_device(torch.randn(p.shape, generator=generator, dtype=p.dtype), p.device)
        if p.dim() < 2:
            direction.append(torch.zeros_like(drawn))
            continue
        dims = tuple(range(1, p.dim()))
        length = torch.linalg.vector_norm(p.detach(), dim=dims, keepdim=True)
        direction.append(drawn * length / torch.linalg.vector_norm(drawn, dim=dims, keepdim=True))
    return direction


def loss_line(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Iterable[Any],
    *,
    span: float = 1.0,
    points: int = 21,
    seed: int = 0,
    cut: Cutter | None = None,
) -> Slice:
    """The mean loss at ``w + a d`` for a in [-span, span] and a filter-normalized random direction d.

    The arguments and errors are those of :func:`loss_plane`.

    Cost: ``points`` forward passes over the batches; 3 P of memory.
    """
    return _slice(model, loss_fn, batches, span, points, seed, cut, axes=1)


def loss_plane(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Iterable[Any],
    *,
    span: float = 1.0,
    points: int = 11,
    seed: int = 0,
    cut: Cutter | None = None,
) -> Slice:
    """The mean loss at ``w + a d + b d'`` for a and b in [-span, span] and two filter-normalized random directions.

    The first direction is that of :func:`loss_line` with this seed. The two are not made orthogonal; in many dimensions
    they nearly are. The model is in evaluation mode, with BatchNorm's running statistics of the weights w; weights,
    ``.grad``, buffers and modes are restored bit for bit.

    Args:
        model: The model, with the weights in the middle of the slice.
        loss_fn: ``(model, batch) -> (B,) or Loss``; a mean, ``()``, only for batches of one size.
        batches: Batches, over all of which the loss is averaged; they are kept in memory.
        span: The largest coordinate, > 0; at 1 every filter has moved by its own length.
        points: The positions along each axis, >= 3 and odd, so that the weights themselves are one of them.
        seed: The seed of the directions, >= 0.
        cut: The object that takes batches apart, as for :class:`lowland.Engine`.

    Raises:
        ArgumentError: An argument breaks its rule, or there is no batch.
        LossError: The weight of a mean loss is not known.
        ParameterError: No parameter is trainable or has two dimensions, or one is in bf16 or fp16.

    Cost: ``points ** 2`` forward passes over the batches; 4 P of memory.

    Reference: Li, Xu, Taylor, Studer, Goldstein: Visualizing the Loss Landscape of Neural Nets. NeurIPS 2018, arXiv
    1712.09913.
    """
    return _slice(model, loss_fn, batches, span, points, seed, cut, axes=2)


def _slice(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Iterable[Any],
    span: float,
    points: int,
    seed: int,
    cut: Cutter | None,
    axes: int,
) -> Slice:
    checks.at_least("span", span, 0, "1 is usual")
    if span == 0:
        raise ArgumentError("span must be > 0, but is 0; 1 is usual")
    checks.integer("points", points, 3, "21 are usual for a line, 11 for a plane")
    if points % 2 == 0:
        raise ArgumentError(f"points must be odd, so that one is at the weights, but is {points}; take {points + 1}")
    checks.integer("seed", seed, 0, "number seeds from 0")
    generator = torch.Generator().manual_seed(seed)
    positions = torch.linspace(-span, span, points, dtype=torch.float64)
    positions[points // 2] = 0.0
    with surface(model, loss_fn, cut) as around:
        pieces = list(around.pieces(batches))
        directions = [random_direction(around.params, generator) for _ in range(axes)]
        if not any(bool(t.any()) for t in directions[0]):
            raise ParameterError(
                "model must have a trainable weight of two dimensions or more that is not zero, along whose filters a "
                "slice goes, but has none; displace the weights by hand"
            )
        losses = []
        for at in torch.cartesian_prod(*[positions] * axes).reshape(-1, axes).tolist():
            moved = vec.scale(directions[0], at[0])
            for direction, a in zip(directions[1:], at[1:], strict=True):
                moved = vec.add(moved, direction, alpha=a)
            losses.append(around.mean(pieces, moved))
    return Slice(positions, torch.tensor(losses, dtype=torch.float64).reshape([points] * axes))


def loss_between(
    model: nn.Module,
    other: Mapping[str, Tensor],
    loss_fn: LossFn,
    batches: Iterable[Any],
    *,
    beyond: float = 0.25,
    points: int = 25,
    cut: Cutter | None = None,
) -> Slice:
    """The mean loss at ``(1 - a) w + a w'`` for a in [-beyond, 1 + beyond]: the line through two sets of weights.

    Floating-point buffers, such as BatchNorm's running statistics, and frozen parameters are interpolated, too, so that
    both ends are the two models. In between, running statistics are not those of the interpolated weights. The model is
    in evaluation mode; weights, ``.grad``, buffers and modes are restored bit for bit.

    Args:
        model: The model with the weights w, at the position 0.
        other: The state dict of the same model with the weights w', at the position 1.
        loss_fn: ``(model, batch) -> (B,) or Loss``; a mean, ``()``, only for batches of one size.
        batches: Batches, over all of which the loss is averaged; they are kept in memory.
        beyond: How far the line goes on at either end, as a fraction of the distance, >= 0.
        points: The positions, >= 3. The ends are positions, too, with the default values.
        cut: The object that takes batches apart, as for :class:`lowland.Engine`.

    Raises:
        ArgumentError: An argument breaks its rule, or there is no batch.
        LossError: The weight of a mean loss is not known.
        ParameterError: The two models differ in names, shapes or tied tensors, no parameter is trainable, or one is in
            bf16 or fp16.

    Cost: ``points`` forward passes over the batches; 3 P of memory.

    Reference: Goodfellow, Vinyals, Saxe: Qualitatively Characterizing Neural Network Optimization Problems. ICLR 2015,
    arXiv 1412.6544.
    """
    checks.at_least("beyond", beyond, 0, "0.25 is usual")
    checks.integer("points", points, 3, "25 are usual")
    own = model.state_dict(keep_vars=True)
    _check_same(own, other)
    batches = list(batches)
    positions = torch.linspace(-beyond, 1 + beyond, points, dtype=torch.float64)
    ends = {id(own[name]): to_device(other[name].detach(), own[name].device) for name in own}
    losses = []
    for a in positions.tolist():
        with _interpolated(own.values(), ends, a), surface(model, loss_fn, cut) as around:
            # other - own is made anew for each position: it is the size of the model, and so is the displacement
            moved = [a * (ends[id(p)].to(p.dtype) - p.detach()) for p in around.params]
            losses.append(around.mean(list(around.pieces(batches)), moved))
    return Slice(positions, torch.tensor(losses, dtype=torch.float64))


def _check_same(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Refuse the state dict of another kind of model.

    Raises:
        ParameterError: A name or a shape differs, or tensors that the model shares have two values.
    """
    wrong = [n for n in own.keys() | other.keys() if n not in own or n not in other or own[n].shape != other[n].shape]
    if wrong:
        raise ParameterError(
            f"other must have the names and shapes of the model, but {sorted(wrong)[0]} is missing or has another "
            "shape; pass the state dict of the same kind of model"
        )
    names: dict[int, str] = {}
    for name, t in own.items():
        first = names.setdefault(id(t), name)
        if first != name and not torch.allclose(other[first], other[name], rtol=0, atol=0, equal_nan=True):
            raise ParameterError(
                f"other must have one value for {first} and {name}, which are one tensor of the model, but has two; "
                "pass the state dict of a model that ties them"
            )


@contextmanager
def _interpolated(own: Iterable[Tensor], ends: Mapping[int, Tensor], a: float) -> Iterator[None]:
    """Interpolate floating-point tensors that are not trained; restore them afterwards."""
    still = [t for t in {id(t): t for t in own}.values() if t.is_floating_point() and not t.requires_grad]
    saved = [t.detach().clone() for t in still]
    try:
        with torch.no_grad():
            for t in still:
                t.copy_(t + a * (ends[id(t)].to(t.dtype) - t))
        yield
    finally:
        with torch.no_grad():
            for t, before in zip(still, saved, strict=True):
                t.copy_(before)
