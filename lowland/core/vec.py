"""Arithmetic on a Vec: a list of tensors, one per trainable parameter.

The tensors may be DTensors: arithmetic uses the local shards; norms and inner products cover all shards.

No function waits for a device: norms and inner products are 0-dim tensors on the device of the vector.
Functions return new vectors. Functions that work in place end in an underscore. Executors use them, and a plan may
change the gradient of a reading with them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lowland.core import shards
from lowland.core.precision import of_vectors
from lowland.core.shards import like as _like
from lowland.core.shards import local as _local

Vec: TypeAlias = list[Tensor]
Scalar: TypeAlias = "float | Tensor | Sequence[float]"

SMALL = 8192  # average entries per tensor, below which one flat copy is cheaper than one call per tensor
TINY = 1e-12  # added to a norm before a division by it

_DTYPE = operator.attrgetter("dtype")
_FOREACH_CLONE = getattr(torch, "_foreach_clone", None)  # not in torch 2.6


def wide(device: torch.device) -> torch.dtype:
    """The widest floating-point dtype of a device: float64, and float32 on MPS, which has nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64


def zeros(like: Vec) -> Vec:
    """Zeros in the shapes of ``like``; fp32 for tensors in bf16 or fp16."""
    return _like(like, [torch.zeros_like(t, dtype=of_vectors(t.dtype)) for t in _local(like)])


def clone(v: Vec) -> Vec:
    """A copy that shares no memory with ``v``."""
    return _like(v, _copies(_local(v)))


def _copies(tensors: Vec) -> Vec:
    """Copy every tensor, in one call if torch has it, which takes 40 % of the time."""
    if _FOREACH_CLONE is None:
        return list(map(Tensor.clone, tensors))
    return list(_FOREACH_CLONE(tensors))


def norms(v: Vec) -> Tensor:
    """The L2 norm of every tensor, shape ``(len(v),)``, in fp32 at least."""
    local = _local(v)
    dtypes = {t.dtype for t in local}
    if dtypes & {torch.float16, torch.bfloat16}:
        wide = torch.float64 if torch.float64 in dtypes else torch.float32
        sizes = torch.stack(list(torch._foreach_norm(local, 2, dtype=wide)))
    else:
        sizes = torch.stack(list(torch._foreach_norm(local)))
    return sizes if shards.ordinary(v) else shards.total(sizes.square(), v).sqrt()


def norm(v: Vec) -> Tensor:
    """The L2 norm over all tensors together, shape ``()``."""
    result: Tensor = torch.linalg.vector_norm(_flat(v) if _many_small(v) else norms(v))
    return result


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
    # The L2 norm of a finite gradient may overflow; its largest magnitude does not.
    nonempty = [t for t in _local(v) if t.numel() > 0]
    if not nonempty:  # a tensor with fewer rows than ranks has empty shards
        return shards.every(torch.ones((), dtype=torch.bool, device=v[0].device), v)
    result = None
    if _at_hand(nonempty[0]):  # a finite L2 norm suffices; the maximum norm is slow on a CPU
        sizes = (
            torch.linalg.vector_norm(_flat(nonempty))
            if _many_small(nonempty)
            else torch.stack(torch._foreach_norm(nonempty))
        )
        result = torch.isfinite(sizes).all()
    if result is None or not result:
        result = torch.isfinite(torch.stack(list(torch._foreach_norm(nonempty, float("inf"))))).all()
    return shards.every(result, v)


def add(a: Vec, b: Vec, alpha: float = 1.0) -> Vec:
    """``a + alpha * b``."""
    return _like(a, torch._foreach_add(_local(a), _local(b), alpha=alpha))


def sub(a: Vec, b: Vec) -> Vec:
    """``a - b``."""
    return _like(a, torch._foreach_sub(_local(a), _local(b)))


def scale(v: Vec, factor: Scalar, each: Sequence[float] | None = None) -> Vec:
    """``factor * v`` for a number, a 0-dim tensor, or a number per tensor; ``each`` holds more factors per tensor."""
    scaled = list(torch._foreach_mul(_local(v), factor))
    if each is not None:
        torch._foreach_mul_(scaled, each)
    return _like(v, scaled)


def stretch(v: Vec, factors: Sequence[Tensor]) -> Vec:
    """Multiply every tensor by its own factor of shape ``()``, in the factor's precision."""
    # A factor may overflow in fp16 although the product does not.
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
    result = _local(along)
    torch._foreach_neg_(result)
    torch._foreach_add_(result, _local(a))
    return along


def mask(v: Vec, keep: Sequence[bool]) -> Vec:
    """``v`` with zeros in place of the tensors that are not kept."""
    return [t if kept else torch.zeros_like(t) for t, kept in zip(v, keep, strict=True)]


def where(condition: Tensor, a: Vec, b: Vec) -> Vec:
    """``a`` where the 0-dim boolean ``condition`` holds, else ``b``, without synchronization."""

    def chosen(a: Vec, b: Vec) -> Vec:
        return [torch.where(condition, x, y) for x, y in zip(a, b, strict=True)]

    return _like(a, together(chosen, _local(a), _local(b)))


def where_true(condition: Tensor, v: Vec) -> Vec:
    """``v`` where the 0-dim boolean ``condition`` holds, else zeros, also in place of NaN.

    On a CPU, ``v`` itself is returned and not a copy.
    """
    if _at_hand(condition):
        return v if bool(condition) else zeros(v)
    zero = torch.zeros((), dtype=v[0].dtype, device=v[0].device)
    return _like(v, [torch.where(condition, t, zero.to(t.dtype)) for t in _local(v)])


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


def together(combine: Callable[..., Vec], *vectors: Vec) -> Vec:
    """``combine(*vectors)``, on flat copies where calls on many small tensors cost more than their arithmetic.

    Args:
        combine: A function that treats all entries of its vectors alike. It may use elementwise operations, norms and
            inner products over all tensors, but no operation per tensor.
        vectors: The arguments of ``combine``.
    """
    if not all(_many_small(v) for v in vectors):
        return combine(*vectors)
    (flat,) = combine(*[[_flat(v)] for v in vectors])
    return list(torch._utils._unflatten_dense_tensors(flat, vectors[0]))  # type: ignore[no-untyped-call]


def _many_small(v: Vec) -> bool:
    """Whether one operation on a flat copy is faster than one per tensor: a call on a CPU costs a microsecond."""
    if len(v) <= 16 or not shards.ordinary(v) or not v[0].is_cpu or v[0].dtype not in (torch.float32, torch.float64):
        return False
    return sum(map(torch.numel, v)) < SMALL * len(v) and len(set(map(_DTYPE, v))) == 1


def _at_hand(t: Tensor) -> bool:
    """Whether a tensor's values can be read without waiting for a device; fake tensors in tests stand for a GPU."""
    return t.is_cpu and type(t) in shards.ORDINARY


def _flat(v: Vec) -> Tensor:
    flat: Tensor = torch._utils._flatten_dense_tensors(v)  # type: ignore[no-untyped-call]
    return flat
