"""Arithmetic on a Vec: a list of tensors, one per trainable parameter.

The tensors may be DTensors: arithmetic uses the local shards; norms and inner products cover all shards.

No function waits for a device: norms and inner products are 0-dim tensors on the device of the vector.
Functions return new vectors. Functions that work in place end in an underscore. Executors use them, and a plan may
change the gradient of a reading with them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lowland.core import large, shards
from lowland.core.at_hand import at_hand as _at_hand
from lowland.core.flat import alone as _alone
from lowland.core.flat import apart as _apart
from lowland.core.flat import bits as _bits
from lowland.core.flat import joined as _joined
from lowland.core.flat import many_small as _many_small
from lowland.core.flat import one_or_zero as _one_or_zero
from lowland.core.flat import pieces as _pieces
from lowland.core.flat import spread as _spread
from lowland.core.precision import of_vectors
from lowland.core.shards import like as _like
from lowland.core.shards import local as _local

Vec: TypeAlias = list[Tensor]
Scalar: TypeAlias = "float | Tensor | Sequence[float]"

TINY = 1e-12  # added to a norm before a division by it

_DTYPE = operator.attrgetter("dtype")
_FOREACH_CLONE = getattr(torch, "_foreach_clone", None)  # not in torch 2.6


def wide(device: torch.device) -> torch.dtype:
    """The widest floating-point dtype of a device: float64, and float32 on MPS, which has nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64


def zeros(like: Vec) -> Vec:
    """Zeros in the shapes of ``like``; fp32 for tensors in bf16 or fp16."""
    result = [torch.empty_like(t, dtype=of_vectors(t.dtype)) for t in _local(like)]
    if result:
        torch._foreach_zero_(result)
    return _like(like, result)


def clone(v: Vec) -> Vec:
    """A copy that shares no memory with ``v``."""
    return _like(v, _copies(_local(v)))


def _copies(tensors: Vec) -> Vec:
    """Copy every tensor, in one call if torch has it, which takes 40 % of the time."""
    if _FOREACH_CLONE is None or not tensors:
        return list(map(Tensor.clone, tensors))
    return list(_FOREACH_CLONE(tensors))


def norms(v: Vec) -> Tensor:
    """The L2 norm of every tensor, shape ``(len(v),)``, in fp32 at least."""
    local = _local(v)
    dtypes = {t.dtype for t in local}
    low = bool(dtypes & {torch.float16, torch.bfloat16})
    dtype = None if not low else torch.float64 if torch.float64 in dtypes else torch.float32
    found = large.norms(local)
    if found:
        others = [t for i, t in enumerate(local) if i not in found]
        rest = iter(torch._foreach_norm(others, 2, dtype=dtype) if others else ())
        each = [found[i].to(dtype or t.dtype) if i in found else next(rest) for i, t in enumerate(local)]
    else:
        each = list(torch._foreach_norm(local, 2, dtype=dtype))
    sizes = torch.stack(each)
    return sizes if shards.ordinary(v) else shards.total(sizes.square(), v).sqrt()


def norm(v: Vec) -> Tensor:
    """The L2 norm over all tensors together, shape ``()``."""
    return large.norm(_joined(v) if _many_small(v) or _alone(v) else norms(v))


def inverse(size: Tensor) -> Tensor:
    """``1 / (size + TINY)``, and 0 for a size of 0: a zero vector has no direction, in any precision."""
    return (size + TINY).reciprocal_().mul_(size != 0)


def dot(a: Vec, b: Vec) -> Tensor:
    """The inner product over all tensors together, shape ``()``."""
    # torch.dot adds up fp32 products in fp32, in few sums, on a CPU; sum() adds them up in a tree.
    if (_many_small(a) and not large.is_large(a)) or _alone(a):
        return torch.dot(_joined(a), _joined(b))
    if _at_hand(a[0]) or not shards.ordinary(a) or len(set(map(_DTYPE, [*a, *b]))) > 1:
        parts = torch.stack([t.sum() for t in torch._foreach_mul(_local(a), _local(b))])
        return shards.total(parts, a).sum()
    sums = []
    for x, y in _pieces(a, b):  # one sum for the products of many tensors, in memory of its own
        flat = a[0].new_empty(sum(map(torch.numel, x)))
        products = _apart(flat, x)
        torch._foreach_copy_(products, x)
        torch._foreach_mul_(products, y)
        sums.append(flat.sum())
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum()


def finite(v: Vec) -> Tensor:
    """Whether every entry is finite: a boolean of shape ``()``, on the device."""
    # The L2 norm of a finite gradient may overflow; its largest magnitude does not.
    nonempty = [t for t in _local(v) if t.numel() > 0]
    if not nonempty:  # a tensor with fewer rows than ranks has empty shards
        return shards.every(torch.ones((), dtype=torch.bool, device=v[0].device), v)
    result = None
    if _at_hand(nonempty[0]):  # a finite L2 norm suffices; the maximum norm is slow on a CPU
        sizes = (
            torch.linalg.vector_norm(_joined(nonempty))
            if _many_small(nonempty)
            else torch.stack(torch._foreach_norm(nonempty))
        )
        result = torch.isfinite(sizes).all()
    if result is None or not result:
        result = torch.stack(list(torch._foreach_norm(nonempty, math.inf))).amax() < math.inf  # false for NaN
    return shards.every(result, v)


def add(a: Vec, b: Vec, alpha: float = 1.0) -> Vec:
    """``a + alpha * b``."""
    return _like(a, torch._foreach_add(_local(a), _local(b), alpha=alpha))


def sub(a: Vec, b: Vec) -> Vec:
    """``a - b``."""
    return _like(a, torch._foreach_sub(_local(a), _local(b)))


def scale(v: Vec, factor: Scalar, each: Sequence[float] | None = None) -> Vec:
    """``factor * v`` for a number, a 0-dim tensor, or a number per tensor; ``each`` holds more factors per tensor."""
    scaled = _kept(torch._foreach_mul(_local(v), factor), v)
    if each is not None:
        torch._foreach_mul_(scaled, each)
    return _like(v, scaled)


def _kept(results: Sequence[Tensor], v: Vec) -> Vec:
    """``results`` in the dtypes of ``v``: of two tensors of shape ``()``, torch takes the wider dtype."""
    if list(map(_DTYPE, results)) == list(map(_DTYPE, v)):
        return list(results)
    return [r.to(t.dtype) for r, t in zip(results, v, strict=True)]


def stretch(v: Vec, factors: Tensor) -> Vec:
    """Multiply every tensor by its own factor, in the factors' precision.

    Args:
        v: The tensors.
        factors: The factors, shape ``(len(v),)``.
    """
    if _many_small(v) and not _at_hand(v[0]) and factors.dtype == v[0].dtype:
        return _apart(_joined(v).mul_(_spread(factors, v)), v)
    if {factors.dtype} == set(map(_DTYPE, v)):
        return _like(v, torch._foreach_mul(_local(v), list(factors.unbind())))
    # A factor may overflow in fp16 although the product does not.
    scaled = [(t.to(f.dtype) * f).to(t.dtype) for t, f in zip(_local(v), factors.unbind(), strict=True)]
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
    return scale(onto, _along(a, onto))


def reject(a: Vec, onto: Vec) -> Vec:
    """The part of ``a`` orthogonal to ``onto``; all of ``a`` where ``onto`` is zero."""
    result = scale(onto, -_along(a, onto))
    add_(result, a)
    return result


def _along(a: Vec, onto: Vec) -> Tensor:
    """The factor of ``onto`` in the projection of ``a``, shape ``()``."""
    square = dot(onto, onto)  # not the square of the norm: then equal vectors leave exactly nothing
    return dot(a, onto) / square.clamp_min(torch.finfo(square.dtype).tiny)


def mask(v: Vec, keep: Sequence[bool]) -> Vec:
    """``v`` with zeros in place of the tensors that are not kept."""
    if all(keep) and len(keep) == len(v):
        return list(v)
    nothing = iter(zeros([t for t, kept in zip(v, keep, strict=True) if not kept]))
    return [t if kept else next(nothing) for t, kept in zip(v, keep, strict=True)]


def where(condition: Tensor, a: Vec, b: Vec) -> Vec:
    """``a`` where the 0-dim boolean ``condition`` holds, else ``b``, without synchronization."""
    if _at_hand(condition):
        return clone(a if condition else b)
    bits = _bits(a)
    result = _kept(torch._foreach_mul(bits, _one_or_zero(condition, a)), bits)
    torch._foreach_add_(result, torch._foreach_mul(_bits(b), _one_or_zero(~condition, b)))
    return _like(a, [r.view(t.dtype) for r, t in zip(result, a, strict=True)])


def zero_unless_(condition: Tensor, v: Vec) -> None:
    """Overwrite ``v`` by zeros unless the 0-dim boolean ``condition`` holds, also NaN, without synchronization."""
    if not _at_hand(condition):
        torch._foreach_mul_(_bits(v), _one_or_zero(condition, v))
    elif not condition:
        torch._foreach_zero_(_local(v))


def add_(v: Vec, other: Vec, alpha: float | Tensor = 1.0) -> None:
    """``v += alpha * other`` in place; alpha is a number or a 0-dim tensor."""
    v, other = _local(v), _local(other)
    if not isinstance(alpha, Tensor):
        torch._foreach_add_(v, other, alpha=alpha)
    elif _at_hand(alpha):
        torch._foreach_addcmul_(v, other, [alpha] * len(v))
    else:
        for own, added in _pieces(v, other):
            torch._foreach_add_(own, torch._foreach_mul(added, alpha))


def scale_(v: Vec, factor: float | Tensor) -> None:
    """``v *= factor`` in place, for a number or a 0-dim tensor."""
    torch._foreach_mul_(_local(v), factor)


def div_(v: Vec, factor: Tensor | Vec | Sequence[float]) -> None:
    """``v /= factor`` in place, for a 0-dim tensor, a vector, or a number per tensor."""
    whole = isinstance(factor, Tensor) or not isinstance(factor[0], Tensor)
    torch._foreach_div_(_local(v), factor if whole else _local(factor))  # type: ignore[arg-type]


def addcmul_(v: Vec, a: Vec, b: Vec, value: float) -> None:
    """``v += value * a * b`` in place."""
    torch._foreach_addcmul_(_local(v), _local(a), _local(b), value)


def sqrt_(v: Vec) -> None:
    """The square root of every entry, in place."""
    torch._foreach_sqrt_(_local(v))


def shift_(v: Vec, offset: float) -> None:
    """``v += offset`` in place."""
    torch._foreach_add_(_local(v), offset)


def copy_(v: Vec, source: Vec) -> None:
    """Copy ``source`` into the memory of ``v``, in one call for each dtype."""
    v, source = _local(v), _local(source)
    dtypes = set(map(_DTYPE, v))
    if len(dtypes) == 1:
        torch._foreach_copy_(v, source)
        return
    # In one call for several dtypes, torch before 2.11 writes all tensors on a GPU in the first one's dtype.
    for dtype in dtypes:
        places = [i for i, t in enumerate(v) if t.dtype == dtype]
        torch._foreach_copy_([v[i] for i in places], [source[i] for i in places])


def lerp_(v: Vec, other: Vec, weight: float) -> None:
    """``v = (1 - weight) * v + weight * other`` in place; exactly ``v`` at 0 and exactly ``other`` at 1."""
    torch._foreach_lerp_(_local(v), _local(other), weight)


def together(combine: Callable[..., Vec], *vectors: Vec) -> Vec:
    """``combine(*vectors)``, on flat copies where calls on many small tensors cost more than their arithmetic.

    Args:
        combine: A function that treats all entries of its vectors alike. It may use elementwise operations, norms and
            inner products over all tensors, but no operation per tensor.
        vectors: The arguments of ``combine``.
    """
    if not all(_many_small(v) for v in vectors):
        return combine(*vectors)
    (flat,) = combine(*[[_joined(v)] for v in vectors])
    return _apart(flat, vectors[0])
