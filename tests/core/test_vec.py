from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowland.core import flat as flattened
from lowland.core import vec
from lowland.core.at_hand import elsewhere

SHAPES = [(3, 2), (), (4,)]
MANY = SHAPES * 7  # on a CPU, reductions of many small tensors take another path
numbers = st.floats(-1e3, 1e3, allow_nan=False, width=32)
seeds = st.integers(0, 2**31 - 1)
quick = settings(max_examples=40, deadline=None)


def draw(seed: int, dtype: torch.dtype = torch.float64, shapes=SHAPES) -> vec.Vec:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def flat(v: vec.Vec) -> torch.Tensor:
    return torch.cat([t.reshape(-1) for t in v])


def assert_equal(a: vec.Vec, b: vec.Vec) -> None:
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


@pytest.fixture(params=[nullcontext, elsewhere], ids=["at hand", "elsewhere"], autouse=True)
def _branches(request):
    """Every test here runs with the branches of a CPU and with those of a GPU."""
    with request.param():
        yield


@pytest.mark.parametrize("shapes", [SHAPES, MANY], ids=["few", "many"])
@quick
@given(seeds, seeds, st.floats(-10, 10))
def test_arithmetic_is_that_of_the_flat_vector(shapes, one, other, factor):
    a, b = draw(one, shapes=shapes), draw(other, shapes=shapes)
    torch.testing.assert_close(flat(vec.add(a, b, factor)), flat(a) + factor * flat(b))
    torch.testing.assert_close(flat(vec.add(a, b, torch.tensor(factor))), flat(a) + np.float32(factor) * flat(b))
    torch.testing.assert_close(flat(vec.sub(a, b)), flat(a) - flat(b))
    torch.testing.assert_close(flat(vec.mul(a, b)), flat(a) * flat(b))
    torch.testing.assert_close(flat(vec.div(a, b)), flat(a) / flat(b))
    torch.testing.assert_close(flat(vec.scale(a, factor)), flat(a) * factor)
    torch.testing.assert_close(flat(vec.shift(a, factor)), flat(a) + factor)
    torch.testing.assert_close(flat(vec.maximum(a, b)), torch.maximum(flat(a), flat(b)))
    torch.testing.assert_close(flat(vec.sqrt(vec.magnitude(a))), flat(a).abs().sqrt())
    torch.testing.assert_close(vec.norm(a), flat(a).norm())
    torch.testing.assert_close(vec.norms(a), torch.stack([t.norm() for t in a]))
    torch.testing.assert_close(vec.dot(a, b), flat(a) @ flat(b))


def test_scale_takes_one_more_number_each():
    v = draw(0)
    found = vec.scale(v, torch.tensor(0.3, dtype=torch.float64), [2.0, 0.0, -1.0])
    torch.testing.assert_close(found, [t * 0.3 * f for t, f in zip(v, [2.0, 0.0, -1.0], strict=True)])


def test_scale_takes_a_number_a_tensor_or_one_number_each():
    v = draw(0)
    assert_equal(vec.scale(v, 2.0), [2 * t for t in v])
    assert_equal(vec.scale(v, torch.tensor(2.0, dtype=torch.float64)), [2 * t for t in v])
    assert_equal(vec.scale(v, [1.0, 0.0, 3.0]), [v[0], 0 * v[1], 3 * v[2]])


@pytest.mark.parametrize("operation", [vec.norm, vec.finite, lambda v: vec.dot(v, v)])
def test_reductions_stay_tensors_of_no_dimension(operation):
    assert operation(draw(0)).shape == ()


@pytest.mark.parametrize("shapes", [SHAPES, MANY], ids=["few", "many"])
@quick
@given(seeds, seeds)
def test_reject_is_orthogonal_and_the_rest_is_parallel(shapes, one, other):
    a, b = draw(one, shapes=shapes), draw(other, shapes=shapes)
    rest, along = vec.reject(a, b), vec.project(a, b)
    bound = 1e-12 * float(vec.norm(a)) * float(vec.norm(b))
    assert abs(float(vec.dot(rest, b))) <= bound
    torch.testing.assert_close(flat(vec.add(rest, along)), flat(a))
    # Cauchy-Schwarz holds with equality for what is parallel.
    assert abs(abs(float(vec.dot(along, b))) - float(vec.norm(along)) * float(vec.norm(b))) <= bound


@quick
@given(seeds, st.floats(1e-3, 1e3))
def test_reject_does_not_depend_on_the_length_of_its_direction(seed, factor):
    a, b = draw(seed), draw(seed + 1)
    torch.testing.assert_close(flat(vec.reject(a, vec.scale(b, factor))), flat(vec.reject(a, b)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reject_along_nothing_is_everything(dtype):
    a = draw(0, dtype)
    assert_equal(vec.reject(a, vec.zeros(a)), a)
    assert_equal(vec.project(a, vec.zeros(a)), vec.zeros(a))


def test_project_survives_a_direction_whose_square_underflows():
    a = draw(0, torch.float32)
    assert bool(vec.finite(vec.project(a, vec.scale(a, 1e-30))))


@quick
@given(seeds, seeds, st.floats(0, 1))
def test_lerp_hits_both_ends_exactly(one, other, weight):
    a, b = draw(one, torch.float32), draw(other, torch.float32)
    assert_equal(vec.lerp(a, b, 0.0), a)
    assert_equal(vec.lerp(a, b, 1.0), b)
    expected = (1 - weight) * flat(a) + weight * flat(b)
    # One rounding of fp32 in every term, terms up to about 5.
    torch.testing.assert_close(flat(vec.lerp(a, b, weight)), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(len(SHAPES)))
@pytest.mark.parametrize("shapes", [SHAPES, MANY], ids=["few", "many"])
def test_finite_sees_one_bad_entry(bad, place, shapes):
    v = draw(0, shapes=shapes)
    assert bool(vec.finite(v))
    v[place] = torch.full_like(v[place], bad)
    assert not bool(vec.finite(v))


def test_finite_is_not_fooled_by_a_norm_that_overflows():
    for count in (1, 20):
        huge = [torch.full((4,), 3e38)] * count
        assert torch.isinf(vec.norm(huge))
        assert bool(vec.finite(huge))


def test_finite_takes_a_parameter_without_elements():
    assert bool(vec.finite([torch.zeros(0), torch.ones(2)]))
    assert not bool(vec.finite([torch.zeros(0), torch.tensor([math.nan])]))
    assert bool(vec.finite([torch.zeros(0)] * 20 + [torch.ones(1)]))


def test_norm_takes_a_parameter_without_elements():
    assert float(vec.norm([torch.zeros(0), torch.tensor([3.0, 4.0])])) == 5.0


def test_layout_in_memory_does_not_matter():
    # A transposed parameter and its gradient may lie in memory in different orders.
    for count in (2, 20):
        a = [t.t() for t in draw(0, shapes=[(3, 4)] * count)]
        b = draw(1, shapes=[(4, 3)] * count)
        torch.testing.assert_close(vec.dot(a, b), flat(a) @ flat(b))
        torch.testing.assert_close(vec.norm(a), flat(a).norm())


@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float64), (torch.float64, torch.bfloat16)])
def test_norms_of_mixed_precisions(dtypes):
    v = [torch.tensor([3.0, 4.0]).to(dtype) for dtype in dtypes]
    assert vec.norms(v).tolist() == [5.0, 5.0]
    many = [t for _ in range(10) for t in v]
    assert float(vec.norm(many)) == pytest.approx(5 * 20**0.5)
    assert bool(vec.finite(many))


def test_norms_of_half_precision_neither_overflow_nor_underflow():
    for size in (6e4, 6e-8):
        exact = float(torch.tensor(size, dtype=torch.float16))
        assert float(vec.norm([torch.full((4,), size, dtype=torch.float16)])) == pytest.approx(2 * exact)


def test_inverse_of_nothing_is_nothing():
    found = vec.inverse(torch.tensor([0.0, 2.0, 1e-30]))
    assert found.tolist() == pytest.approx([0.0, 0.5, 1e12], rel=1e-6)


def test_mixed_precisions_keep_each_tensor_in_its_own():
    v = [torch.tensor([3.0]), torch.tensor([4.0], dtype=torch.float64)]
    assert float(vec.norm(v)) == 5.0
    assert [t.dtype for t in vec.scale(v, 1 / vec.norm(v))] == [torch.float32, torch.float64]


def test_where_decides_on_the_device():
    a, b = draw(0), draw(1)
    assert_equal(vec.where(torch.tensor(True), a, b), a)
    assert_equal(vec.where(torch.tensor(False), a, b), b)


def test_where_drops_what_is_not_finite():
    bad = [torch.full_like(t, math.nan) for t in draw(0)]
    assert_equal(vec.where(torch.tensor(False), bad, draw(1)), draw(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shapes", [SHAPES, MANY, [(2, 0), (3,)]], ids=["few", "many", "empty"])
def test_zero_unless_is_in_place_and_bit_for_bit(dtype, shapes):
    v = draw(0, dtype, shapes)
    v[-1][0], v[-1][1], v[-1][2] = math.nan, -0.0, math.inf
    kept, addresses = vec.clone(v), [t.data_ptr() for t in v]
    vec.zero_unless_(torch.tensor(True), v)
    assert all(bits(a) == bits(b) for a, b in zip(v, kept, strict=True))
    vec.zero_unless_(torch.tensor(False), v)
    assert all(set(bits(t)) <= {0} for t in v)
    assert [t.data_ptr() for t in v] == addresses


def bits(t: torch.Tensor) -> list[int]:
    return t.reshape(-1).view(torch.uint8).tolist()


def test_where_and_zero_unless_take_precisions_and_layouts_as_they_come():
    a = [torch.randn(2, 3), torch.randn(3).double(), torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)]
    b = [torch.full((2, 3), math.nan), torch.randn(3).double(), torch.randn(2, 3, 4, 4)]
    assert_equal(vec.where(torch.tensor(True), a, b), a)
    assert_equal(vec.where(torch.tensor(False), b, a), a)
    vec.zero_unless_(torch.tensor(False), b)
    assert_equal(b, [torch.zeros_like(t) for t in b])


@pytest.mark.parametrize("shapes", [SHAPES, MANY], ids=["few", "many"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_stretch_multiplies_every_tensor_by_its_own_factor(shapes, dtype):
    v, factors = draw(0, dtype, shapes), torch.randn(len(shapes), dtype=dtype)
    assert_equal(vec.stretch(v, factors), [t * f for t, f in zip(v, factors, strict=True)])
    assert torch.equal(flattened.spread(factors, v), flat([f.expand(t.shape) for t, f in zip(v, factors, strict=True)]))


@pytest.mark.parametrize("alpha", [torch.tensor(0.5), -2.0])
def test_temporary_memory_is_cut_into_pieces(alpha, monkeypatch):
    monkeypatch.setattr(flattened, "PIECE", 10)
    shapes = [(9000,), (3,), (4,), (3,), (1,), (11,), (0,), (10,)]  # too large on average for a flat copy
    a, b = draw(0, shapes=shapes), draw(1, shapes=shapes)
    assert float(vec.dot(a, b)) == pytest.approx(float(flat(a) @ flat(b)), rel=1e-12)
    pieces = list(flattened.pieces(a, b))
    assert [len(x) for x, _ in pieces] == [1, 3, 1, 1, 2]
    assert_equal([t for x, _ in pieces for t in x], a)
    expected = [x + alpha * y for x, y in zip(a, b, strict=True)]
    vec.add_(a, b, alpha)
    for x, y in zip(a, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-15, atol=1e-15)


def test_mask_keeps_and_zeroes():
    v = draw(0)
    assert_equal(vec.mask(v, [True, False, True]), [v[0], torch.zeros_like(v[1]), v[2]])
    with pytest.raises(ValueError):
        vec.mask(v, [True, False])


NEW = {
    "zeros": vec.zeros,
    "clone": vec.clone,
    "add": lambda v: vec.add(v, v),
    "sub": lambda v: vec.sub(v, v),
    "scale": lambda v: vec.scale(v, 1.0),
    "mul": lambda v: vec.mul(v, v),
    "lerp0": lambda v: vec.lerp(v, draw(9), 0.0),
    "lerp1": lambda v: vec.lerp(draw(9), v, 1.0),
    "reject": lambda v: vec.reject(v, vec.zeros(v)),
    "project": lambda v: vec.project(v, v),
    "where": lambda v: vec.where(torch.tensor(True), v, v),
}


@pytest.mark.parametrize("operation", NEW.values(), ids=NEW)
def test_results_share_no_memory_with_arguments(operation):
    v = draw(0)
    before = vec.clone(v)
    for t in operation(v):
        t.fill_(7.0)
    assert_equal(v, before)


def test_copy_restores_every_bit_in_place():
    source = [torch.tensor([0.0, -0.0, math.nan, math.inf, 1e-45])]
    target = [torch.ones(5)]
    address = target[0].data_ptr()
    vec.copy_(target, source)
    assert torch.equal(target[0].view(torch.int32), source[0].view(torch.int32))
    assert target[0].data_ptr() == address


def test_in_place_operations_change_their_first_argument_alone():
    v, other = draw(0), draw(1)
    expected, untouched = vec.add(v, other), vec.clone(other)
    vec.add_(v, other)
    assert_equal(v, expected)
    assert_equal(other, untouched)
    vec.div_(v, torch.tensor(4.0))
    assert_equal(v, [t / 4 for t in expected])


@pytest.mark.parametrize("count", [3, 400])
def test_together_gives_what_the_function_gives_alone(count):
    a, b = ([torch.randn(5, 2, dtype=torch.float64) for _ in range(count)] for _ in range(2))
    for combine in (vec.reject, vec.project, vec.sub):
        for x, y in zip(vec.together(combine, a, b), combine(a, b), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


def test_together_works_on_one_flat_copy_where_tensors_are_many_and_small():
    seen = []

    def combine(a, b):
        seen.append(len(a))
        return vec.sub(a, b)

    small, large = [torch.ones(3)] * 400, [torch.ones(10_000)] * 20
    vec.together(combine, small, small)
    vec.together(combine, large, large)
    assert seen == [1, 20]


@pytest.mark.parametrize("alpha", [0.5, torch.tensor(0.5)])
def test_add_in_place(alpha):
    v, other = [torch.ones(3), torch.ones(2)], [torch.full((3,), 2.0), torch.full((2,), 4.0)]
    address = v[0].data_ptr()
    vec.add_(v, other, alpha)
    assert [t.tolist() for t in v] == [[2.0] * 3, [3.0] * 2]
    assert v[0].data_ptr() == address
