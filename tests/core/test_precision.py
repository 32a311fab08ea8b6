"""Stochastic rounding to bf16 and fp16."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lowland.core import precision, vec

LOW = [torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", LOW, ids=str)


def rounded(values: Tensor, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return precision.rounded(values, dtype, torch.Generator().manual_seed(seed))


@every_dtype
def test_every_value_of_the_dtype_stays(dtype: torch.dtype) -> None:
    of_all_bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    for seed in range(3):
        now = rounded(of_all_bits.float(), dtype, seed)
        assert torch.equal(now.isnan(), of_all_bits.isnan())
        assert torch.equal(now.nan_to_num(0.0), of_all_bits.nan_to_num(0.0))


def neighbours(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The nearest values of the dtype below and above, by torch's own rounding and the next float in its bits."""
    bits = values.to(dtype).view(torch.int16).int()
    order = torch.where(bits < 0, -(bits & 0x7FFF), bits)  # in the order of the values
    near = [
        torch.where(o < 0, -o | 0x8000, o).to(torch.int16).view(dtype).float() for o in (order - 1, order, order + 1)
    ]
    below = torch.where(near[1] <= values, near[1], near[0])
    return below, torch.where(near[1] <= values, near[2], near[1])


@every_dtype
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("share", [0.03, 0.5, 0.9])
def test_a_value_becomes_one_of_its_neighbours_and_on_average_itself(
    dtype: torch.dtype, size: float, share: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    start = (torch.randn(40, generator=generator) * size).to(dtype).float()
    below, above = neighbours(start, dtype)
    values = (below.double() + share * (above.double() - below.double())).float()
    below, above = neighbours(values, dtype)
    count = 4000
    draws = rounded(values.expand(count, 40).contiguous(), dtype).double()
    assert bool(((draws == below) | (draws == above)).all())
    gaps = (above - below).double()
    wanted = (values - below).double() / gaps
    # the mean of a coin thrown 4,000 times, within 5 standard deviations, for all 40 values
    assert bool((((draws.mean(0) - below) / gaps - wanted).abs() <= 5 * math.sqrt(0.25 / count)).all())
    assert abs(float(((draws.mean(0) - below) / gaps - wanted).mean())) < 5 * math.sqrt(0.25 / count / 40)


@every_dtype
def test_values_that_are_no_numbers_and_values_beyond_the_range(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    values = torch.tensor([math.nan, math.inf, -math.inf, most, -most, 3.4e38, -3.4e38])
    now = rounded(values, dtype).float()
    assert bool(now[0].isnan())
    assert now[1:5].tolist() == [math.inf, -math.inf, most, -most]
    assert now[5].item() in (math.inf, most)
    assert now[6].item() in (-math.inf, -most)


@every_dtype
def test_the_seed_decides(dtype: torch.dtype) -> None:
    values = torch.randn(1000)
    assert torch.equal(rounded(values, dtype, 3), rounded(values, dtype, 3))
    assert not torch.equal(rounded(values, dtype, 3), rounded(values, dtype, 4))


def test_vectors_are_wide() -> None:
    params = [torch.ones(2, dtype=d) for d in (torch.bfloat16, torch.float16, torch.float32, torch.float64)]
    assert [z.dtype for z in vec.zeros(params)] == [torch.float32] * 3 + [torch.float64]
    wide = precision.widened(params)
    assert [w.dtype for w in wide] == [torch.float32] * 3 + [torch.float64]
    assert wide[2] is params[2]
    assert wide[3] is params[3]
    precision.narrow_(wide, params)
    assert [n.dtype for n in wide] == [p.dtype for p in params]
    precision.widen_(wide)
    assert [w.dtype for w in wide] == [torch.float32] * 3 + [torch.float64]
