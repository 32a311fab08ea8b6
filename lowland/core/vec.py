"""Arithmetic on a Vec: a list of tensors, one per trainable parameter.

The tensors may be DTensors: arithmetic is on local shards, and norms and inner products are those of the whole.

Nothing here reads a value from another device: norms and inner products stay 0-dim tensors where they are.
Functions return new vectors. The few that work in place end in an underscore; they are for the executors, and for a
plan that changes a reading's gradient, which is its own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lowland.core import shards
from lowland.core.shards import like as _like
from lowland.core.shards import local as _local

Vec: TypeAlias = list[Tensor]
Scalar: TypeAlias = "float | Tensor | Sequence[float]"

SMALL = 8192  # entries of a tensor, on average, up to which a call for each costs more than a flat copy of all
TINY = 1e-12  # added to every norm that is divided by

_DTYPE = operator.attrgetter("dtype")
_FOREACH_CLONE = getattr(torch, "_foreach_clone", None)  # not in torch 2.6


def zeros(like: Vec) -> Vec:
    """Zeros in the shapes of ``like``."""
    return _like(like, [torch.zeros_like(t) for t in _local(like)])


def clone(v: Vec) -> Vec:
    """A copy that shares no memory with ``v``."""
    return _like(v, _copies(_local(v)))


def _copies(tensors: Vec) -> Vec:
    """A copy of each, in one call where torch has it, at 40 % of the price."""
    if _FOREACH_CLONE is None:
        return list(map(Tensor.clone, tensors))
    return list(_FOREACH_CLONE(tensors))


def norms(v: Vec) -> Tensor:
    """The L2 norm of every tensor, shape ``(len(v),)``, in fp32 at least."""
    here = _local(v)
    kinds = {t.dtype for t in here}
    if kinds & {torch.float16, torch.bfloat16}:
        wide = torch.float64 if torch.float64 in kinds else torch.float32
        found = torch.stack(list(torch._foreach_norm(here, 2, dtype=wide)))
    else:
        found = torch.stack(list(torch._foreach_norm(here)))
    return found if shards.ordinary(v) else shards.total(found.square(), v).sqrt()


def norm(v: Vec) -> Tensor:
    """The L2 norm over all tensors together, shape ``()``."""
    total: Tensor = torch.linalg.vector_norm(_flat(v) if _many_small(v) else norms(v))
    return total


def inverse(size: Tensor) -> Tensor:
    """``1 / (size + TINY)``, and 0 for a size of 0: a zero vector has no direction, in any precision."""
    return torch.where(size == 0, torch.zeros_like(size), 1 / (size + TINY))


def dot(a: Vec, b: Vec) -> Tensor:
    """The inner product over all tensors together, shape ``()``."""
    if _many_small(a):
        return torch.dot(_flat(a), _flat(b))
    parts = torch.stack([t.sum() for t in torch._foreach_mul(_local(a), _local(b))])
    return shards.total(parts, a).sum()


def finite(v: Vec) -> Tensor:
    """Whether every entry is finite: a boolean of shape ``()``, on the device."""
    # The largest magnitude, not the L2 norm: that overflows for gradients which are still finite.
    here = [t for t in _local(v) if t.numel() > 0]
    if not here:  # of a tensor with fewer rows than ranks, some have nothing
        return shards.every(torch.ones((), dtype=torch.bool, device=v[0].device), v)
    found = None
    if _at_hand(here[0]):  # L2 norms that are finite save the other one, which is slow on a CPU
        sizes = torch.linalg.vector_norm(_flat(here)) if _many_small(here) else torch.stack(torch._foreach_norm(here))
        found = torch.isfinite(sizes).all()
    if found is None or not found:
        found = torch.isfinite(torch.stack(list(torch._foreach_norm(here, float("inf"))))).all()
    return shards.every(found, v)


def add(a: Vec, b: Vec, alpha: float = 1.0) -> Vec:
    """``a + alpha * b``."""
    return _like(a, torch._foreach_add(_local(a), _local(b), alpha=alpha))


def sub(a: Vec, b: Vec) -> Vec:
    """``a - b``."""
    return _like(a, torch._foreach_sub(_local(a), _local(b)))


def scale(v: Vec, factor: Scalar, each: Sequence[float] | None = None) -> Vec:
    """``factor * v``; the factor is a number, a 0-dim tensor, or one number per tensor; ``each`` is one more."""
    scaled = list(torch._foreach_mul(_local(v), factor))
    if each is not None:
        torch._foreach_mul_(scaled, each)
    return _like(v, scaled)


def stretch(v: Vec, factors: Sequence[Tensor]) -> Vec:
    """Every tensor by its own factor of shape ``()``, multiplied in the factors' precision."""
    # In the norms' precision: a factor can be beyond fp16 where the product is not.
    scaled = [(t.to(f.dtype) * f).to(t.dtype) for t, f in zip(_local(v), factors, strict=True)]
    return _like(v, scaled)


def mul(a: Vec, b: Vec) -> Vec:
    """Elementwise product; entries of ``b`` may be 0-dim."""
    return _like(a, torch._foreach_mul(_local(a), _local(b)))


def div(a: Vec, b: Vec) -> Vec:
    """Elementwise quotient; entries of ``b`` may be 0-dim."""
    return _like(a, torch._foreach_div(_local(a), _local(b)))


def sqrt(v: Vec) -> Vec:
    """Elementwise square root."""
    return _like(v, torch._foreach_sqrt(_local(v)))


def magnitude(v: Vec) -> Vec:
    """Elementwise absolute value."""
    return _like(v, torch._foreach_abs(_local(v)))


def maximum(a: Vec, b: Vec) -> Vec:
    """Elementwise maximum."""
    return _like(a, torch._foreach_maximum(_local(a), _local(b)))


def shift(v: Vec, offset: float) -> Vec:
    """``v + offset``."""
    return _like(v, torch._foreach_add(_local(v), offset))


def lerp(a: Vec, b: Vec, weight: float) -> Vec:
    """``(1 - weight) * a + weight * b``; exactly ``a`` at 0 and exactly ``b`` at 1."""
    return _like(a, torch._foreach_lerp(_local(a), _local(b), weight))


def project(a: Vec, onto: Vec) -> Vec:
    """The part of ``a`` along ``onto``; zero where ``onto`` is zero."""
    square = dot(onto, onto)
    return scale(onto, dot(a, onto) / square.clamp_min(torch.finfo(square.dtype).tiny))


def reject(a: Vec, onto: Vec) -> Vec:
    """The part of ``a`` orthogonal to ``onto``; all of ``a`` where ``onto`` is zero."""
    along = project(a, onto)
    here = _local(along)
    torch._foreach_neg_(here)
    torch._foreach_add_(here, _local(a))
    return along


def mask(v: Vec, keep: Sequence[bool]) -> Vec:
    """``v`` with zeros in place of the tensors that are not kept."""
    return [t if kept else torch.zeros_like(t) for t, kept in zip(v, keep, strict=True)]


def where(condition: Tensor, a: Vec, b: Vec) -> Vec:
    """``a`` where the 0-dim boolean ``condition`` holds, else ``b``, without asking the host."""

    def chosen(a: Vec, b: Vec) -> Vec:
        return [torch.where(condition, x, y) for x, y in zip(a, b, strict=True)]

    return _like(a, together(chosen, _local(a), _local(b)))


def where_true(condition: Tensor, v: Vec) -> Vec:
    """``v`` where the 0-dim boolean ``condition`` holds, else zeros, also in place of NaN.

    On a CPU ``v`` is given back and not a copy.
    """
    if _at_hand(condition):
        return v if bool(condition) else zeros(v)
    nothing = torch.zeros((), dtype=v[0].dtype, device=v[0].device)
    return _like(v, [torch.where(condition, t, nothing.to(t.dtype)) for t in _local(v)])


def add_(v: Vec, other: Vec, alpha: float | Tensor = 1.0) -> None:
    """``v += alpha * other`` in place; alpha is a number or a 0-dim tensor."""
    v, other = _local(v), _local(other)
    if not isinstance(alpha, Tensor):
        torch._foreach_add_(v, other, alpha=alpha)
    elif alpha.is_cpu:
        torch._foreach_addcmul_(v, other, [alpha] * len(v))
    else:
        torch._foreach_add_(v, torch._foreach_mul(other, alpha))


def scale_(v: Vec, factor: float | Tensor) -> None:
    """``v *= factor`` in place, for a number or a 0-dim tensor."""
    torch._foreach_mul_(_local(v), factor)


def div_(v: Vec, factor: Tensor) -> None:
    """``v /= factor`` in place, for a 0-dim tensor."""
    torch._foreach_div_(_local(v), factor)


def copy_(v: Vec, source: Vec) -> None:
    """Overwrite ``v`` with ``source``, bit for bit, at the same addresses."""
    torch._foreach_copy_(_local(v), _local(source))


def together(combine: Callable[..., Vec], *vectors: Vec) -> Vec:
    """``combine(*vectors)``, on flat copies where many small tensors would cost more calls than arithmetic.

    Args:
        combine: Made of functions of this module that treat all entries alike: sums, norms and inner products over
            everything, elementwise operations, but nothing per tensor.
        vectors: What it combines.
    """
    if not all(_many_small(v) for v in vectors):
        return combine(*vectors)
    (flat,) = combine(*[[_flat(v)] for v in vectors])
    return list(torch._utils._unflatten_dense_tensors(flat, vectors[0]))  # type: ignore[no-untyped-call]


def _many_small(v: Vec) -> bool:
    """Whether one operation on a flat copy beats one operation per tensor: on a CPU a call costs a microsecond."""
    if len(v) <= 16 or not shards.ordinary(v) or not v[0].is_cpu or v[0].dtype not in (torch.float32, torch.float64):
        return False
    return sum(map(torch.numel, v)) < SMALL * len(v) and len(set(map(_DTYPE, v))) == 1


def _at_hand(t: Tensor) -> bool:
    """Whether its values can be read without waiting for a device: not those of fakes, which stand for one in tests."""
    return t.is_cpu and type(t) in shards.ORDINARY


def _flat(v: Vec) -> Tensor:
    flat: Tensor = torch._utils._flatten_dense_tensors(v)  # type: ignore[no-untyped-call]
    return flat
