from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from lowland.core import vec
from lowland.core.errors import ArgumentError
from lowland.core.geometry import L2, Adaptive, Layerwise

ALL = {"l2": L2(), "adaptive": Adaptive(), "layerwise": Layerwise(), "tensors": Layerwise(trust=False)}
every_geometry = pytest.mark.parametrize("geometry", ALL.values(), ids=ALL)


def problem(dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2), (4,), ()]
    params = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    grad = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    return params, grad


def assert_close(a, b) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=0)


def test_l2_is_the_gradient_at_length_rho():
    params, grad = problem()
    e = L2().ascent(params, grad, 0.3)
    assert float(vec.norm(e)) == pytest.approx(0.3, rel=1e-11)
    assert_close(e, [0.3 * g / vec.norm(grad) for g in grad])


def test_adaptive_is_the_paper_s_formula():
    params, grad = problem()
    sizes = [p.abs() + 0.02 for p in params]
    norm = vec.norm([t * g for t, g in zip(sizes, grad, strict=True)])
    expected = [0.3 * t * t * g / norm for t, g in zip(sizes, grad, strict=True)]
    assert_close(Adaptive(eta=0.02).ascent(params, grad, 0.3), expected)


def test_adaptive_does_not_care_how_a_layer_is_scaled():
    # w -> c w changes the gradient to g / c; the displacement, relative to w, stays.
    params, grad = problem()
    relative = [e / p for e, p in zip(Adaptive(eta=0.0).ascent(params, grad, 0.3), params, strict=True)]
    c = [7.0, 0.1, 3.0]
    moved = Adaptive(eta=0.0).ascent(vec.scale(params, c), vec.div(grad, [torch.tensor(x) for x in c]), 0.3)
    torch.testing.assert_close(
        torch.cat([(e / (x * p)).reshape(-1) for e, x, p in zip(moved, c, params, strict=True)]),
        torch.cat([r.reshape(-1) for r in relative]),
    )


def test_layerwise_moves_every_tensor_in_proportion_to_its_norm():
    params, grad = problem()
    expected = [0.3 * p.norm() * g / g.norm() for p, g in zip(params, grad, strict=True)]
    assert_close(Layerwise().ascent(params, grad, 0.3), expected)
    assert_close(Layerwise(trust=False).ascent(params, grad, 0.3), [0.3 * g / g.norm() for g in grad])


def test_layerwise_counts_a_tensor_of_zeros_as_norm_one():
    e = Layerwise().ascent([torch.zeros(2)], [torch.tensor([3.0, 4.0])], 0.5)
    torch.testing.assert_close(e[0], torch.tensor([0.3, 0.4]))


@every_geometry
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_no_gradient_no_displacement(geometry, dtype):
    params, grad = problem(dtype)
    for e in geometry.ascent(params, vec.zeros(grad), 0.3):
        assert torch.equal(e, torch.zeros_like(e))


@every_geometry
def test_one_zero_tensor_among_others_stays(geometry):
    params, grad = problem()
    grad[1] = torch.zeros_like(grad[1])
    e = geometry.ascent(params, grad, 0.3)
    assert torch.equal(e[1], torch.zeros_like(e[1]))
    assert bool(vec.finite(e))
    assert float(e[0].norm()) > 0


@every_geometry
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_scale_of_the_loss_does_not_matter(geometry, factor):
    params, grad = problem()
    found = geometry.ascent(params, vec.scale(grad, factor), 0.3)
    for e, expected in zip(found, geometry.ascent(params, grad, 0.3), strict=True):
        # TINY stands beside norms of 1e-6 here.
        torch.testing.assert_close(e, expected, rtol=1e-5, atol=0)


@every_geometry
def test_radius_zero_is_no_displacement(geometry):
    params, grad = problem()
    for radii in (0.0, [0.0, 0.0, 0.0]):
        assert all(not e.any() for e in geometry.ascent(params, grad, radii))


@every_geometry
def test_equal_radii_are_one_radius(geometry):
    params, grad = problem()
    assert_close(geometry.ascent(params, grad, [0.3] * 3), geometry.ascent(params, grad, 0.3))


@every_geometry
def test_excluded_tensors_stay_and_are_no_part_of_the_norm(geometry):
    params, grad = problem()
    found = geometry.ascent(params, grad, [0.3, 0.0, 0.3])
    assert not found[1].any()
    alone = geometry.ascent([params[0], params[2]], [grad[0], grad[2]], 0.3)
    assert_close([found[0], found[2]], alone)


@every_geometry
def test_own_radii_scale_each_tensor(geometry):
    params, grad = problem()
    once, twice = geometry.ascent(params, grad, [0.1] * 3), geometry.ascent(params, grad, [0.1, 0.2, 0.4])
    assert_close(twice, vec.scale(once, [1.0, 2.0, 4.0]))


@every_geometry
def test_arguments_are_left_alone(geometry):
    params, grad = problem()
    before, old = vec.clone(grad), [p.clone() for p in params]
    for e in geometry.ascent(params, grad, 0.3):
        e.detach().fill_(9.0)
    assert all(torch.equal(a, b) for a, b in zip(grad, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(params, old, strict=True))


@every_geometry
@pytest.mark.parametrize("radii", [0.3, 0.0, [0.1, 0.2, 0.0], [0.0, 0.0, 0.0]], ids=str)
def test_in_place_it_is_the_same_displacement_bit_for_bit(geometry, radii):
    params, grad = problem()
    wanted, old = geometry.ascent(params, grad, radii), [p.clone() for p in params]
    assert all(map(torch.equal, geometry.ascent_(params, grad, radii), wanted))
    assert all(map(torch.equal, params, old))


def test_l2_in_place_needs_no_memory():
    params, grad = problem()
    e = L2().ascent_(params, grad, 0.3)
    assert all(a is b for a, b in zip(e, grad, strict=True))


def test_a_geometry_of_one_s_own_is_asked_in_place_too():
    @dataclass(frozen=True, kw_only=True)
    class Opposite(L2):
        def ascent(self, params, grad, radii):
            return vec.scale(super().ascent(params, grad, radii), -1.0)

    params, grad = problem()
    wanted = Opposite().ascent(params, grad, 0.3)
    assert all(map(torch.equal, Opposite().ascent_(params, grad, 0.3), wanted))


@every_geometry
@pytest.mark.parametrize("size", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_gradients_in_low_precision_still_have_a_direction(geometry, size, dtype):
    params = [torch.ones(4, dtype=dtype)]
    (e,) = geometry.ascent(params, [torch.full((4,), size, dtype=dtype)], 0.1)
    expected = 0.1 if geometry == Layerwise() else 0.05  # ||w|| = 2
    if isinstance(geometry, Adaptive):
        expected *= 1.01
    # bf16 has 8 bits; 1e-7 in fp16 has one.
    torch.testing.assert_close(e.float(), torch.full((4,), expected), rtol=0.02, atol=0)


def test_mixed_precisions_keep_theirs():
    params = [torch.ones(2), torch.ones(2, dtype=torch.float64)]
    for geometry in ALL.values():
        e = geometry.ascent(params, params, 0.1)
        assert [t.dtype for t in e] == [torch.float32, torch.float64]


@pytest.mark.parametrize("eta", [-0.1, float("nan"), float("inf"), "0.1", True])
def test_adaptive_refuses_a_bad_eta(eta):
    with pytest.raises(ArgumentError, match=r"eta must be a number >= 0, but is .*; 0.01 is the paper's value"):
        Adaptive(eta=eta)
