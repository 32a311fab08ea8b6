"""Norms and inner products of large fp32 tensors on a CPU, where torch's own lose digits."""

from __future__ import annotations

import math

import pytest
import torch
from branches import of_a_cpu
from torch import Tensor

from lowland import Layerwise
from lowland.core import flat, large, vec
from lowland.core.geometry import L2

pytestmark = of_a_cpu  # a GPU adds up in a tree
COUNT = 6_000_000
LARGE = {
    "equal": lambda: torch.full((COUNT,), 1e-3),
    "random": lambda: torch.randn(COUNT, generator=torch.Generator().manual_seed(0)),
    "channels last": lambda: torch.randn(3, 2000, 20, 50).to(memory_format=torch.channels_last),
    "with gaps": lambda: torch.full((4000, 3000), 1e-3)[:, ::2],
    "bf16": lambda: torch.full((2000, 3000), 1e-3, dtype=torch.bfloat16),
}
every_large = pytest.mark.parametrize("make", LARGE.values(), ids=LARGE)


def exact(v: list[Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in v))


@every_large
def test_a_norm_of_a_large_tensor_is_right(make) -> None:
    v = [torch.ones(3), make(), torch.ones(())]
    assert float(vec.norm(v)) == pytest.approx(exact(v), rel=3e-7)
    for size, t in zip(vec.norms(v).tolist(), v, strict=True):
        assert size == pytest.approx(exact([t]), rel=3e-7)
    assert vec.norms(v).dtype is torch.float32


def test_a_radius_is_right() -> None:
    g = LARGE["equal"]()
    assert exact(L2().ascent([g], [g], 0.05)) == pytest.approx(0.05, rel=1e-6)
    w = torch.full_like(g, 2e-3)
    assert exact(Layerwise().ascent([w], [g], 0.05)) == pytest.approx(0.05 * exact([w]), rel=1e-6)


def test_many_small_tensors_are_a_large_vector() -> None:
    v = [torch.full((8000,), 1e-3) for _ in range(750)]
    assert flat.many_small(v)
    assert float(vec.norm(v)) == pytest.approx(exact(v), rel=3e-7)
    assert float(vec.dot(v, v)) == pytest.approx(exact(v) ** 2, rel=3e-7)


def test_small_tensors_keep_their_bits() -> None:
    v = [torch.randn(large.LARGE), torch.randn(5, 7)]
    assert torch.equal(vec.norms(v), torch.stack(torch._foreach_norm(v)))
    v = [torch.randn(1000) for _ in range(40)]
    assert torch.equal(vec.norm(v), torch.linalg.vector_norm(torch.cat(v)))
