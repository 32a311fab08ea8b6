"""Parameters in bf16 and fp16: their vectors are fp32, and their displaced weights are rounded stochastically.

A displacement is far below the resolution of bf16, which has 8 bits: a weight of 0.02 has neighbours at a distance of
1.2e-4, and an entry of ``rho * g / ||g||`` is near 1e-6. Rounding to the nearest value removes such a displacement.
Stochastic rounding keeps it on average: a value between two neighbours becomes one of them, the nearer one more often,
so that its expectation is the value itself.

Reference: Gupta, Agrawal, Gopalakrishnan, Narayanan: Deep Learning with Limited Numerical Precision. ICML 2015,
arXiv 1502.02551 (stochastic rounding).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

DROPPED = {torch.bfloat16: 16, torch.float16: 13}  # the bits of fp32's mantissa that the dtype does not have
_DTYPE = operator.attrgetter("dtype")
SMALLEST_NORMAL, SUBNORMAL_STEP = 2.0**-14, 2.0**-24  # of fp16; bf16 has the exponents of fp32


def is_low(v: Sequence[Tensor]) -> bool:
    """Whether a tensor is in bf16 or fp16."""
    return not DROPPED.keys().isdisjoint(map(_DTYPE, v))


def of_vectors(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the vectors that belong to parameters of this dtype: fp32 at least."""
    return torch.float32 if dtype in DROPPED else dtype


def widened(v: Sequence[Tensor]) -> list[Tensor]:
    """fp32 copies of tensors in bf16 or fp16; all other tensors themselves."""
    return [t.to(torch.float32) if t.dtype in DROPPED else t for t in v] if is_low(v) else list(v)


def widen_(v: list[Tensor]) -> None:
    """:func:`widened` in place of the list's entries, one after the other, so that the memory of each is freed."""
    for i in range(len(v)):
        v[i] = widened([v[i]])[0]


def narrow_(v: list[Tensor], params: Sequence[Tensor]) -> None:
    """Replace the list's entries by tensors in the dtypes of ``params``, rounded to the nearest value."""
    for i, p in enumerate(params):
        v[i] = v[i].to(p.dtype)


def rounded(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Round fp32 values stochastically, so that the expectation of the result is the value.

    A value that the dtype has stays as it is. NaN and infinity stay. A value beyond the dtype's range becomes infinity.

    Args:
        values: The values, in fp32.
        dtype: bf16 or fp16.
        generator: The random number generator, on the device of the values.

    Returns:
        The rounded values in ``dtype``.
    """
    bits = DROPPED[dtype]
    draws = torch.empty_like(values, dtype=torch.int32).random_(0, 1 << bits, generator=generator)
    # The magnitude of a float grows with its bits, so a carry from the dropped bits leads to the next value.
    result = ((values.view(torch.int32) + draws) & -(1 << bits)).view(torch.float32)
    if dtype is torch.float16:
        steps = torch.floor(values / SUBNORMAL_STEP + (draws + 0.5) / (1 << bits)) * SUBNORMAL_STEP
        result = torch.where(values.abs() < SMALLEST_NORMAL, steps, result)
    return torch.where(torch.isfinite(values), result, values).to(dtype)
