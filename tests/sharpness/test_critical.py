"""The critical sharpness of quadratics by hand."""

from __future__ import annotations

import math

import pytest
import torch
from problems import batch, loss_fn, net
from quadratics import DIAGONAL, ONE, Quadratic, point, symmetric

from lowland.core.errors import ArgumentError, LossError
from lowland.sharpness import critical_sharpness, hessian_eigenvalues

F64 = torch.float64


@pytest.mark.parametrize("first", [1e-6, 1.0, 1e5])
def test_a_quadratic_has_the_curvature_along_its_gradient(first: float) -> None:
    draw = torch.randn(5, 5, dtype=F64, generator=torch.Generator().manual_seed(2))
    matrix, x = draw @ draw.T, torch.tensor([1.0, -2, 0.5, 3, 1], dtype=F64)
    gradient = matrix @ x
    expected = float(gradient @ matrix @ gradient / gradient.dot(gradient))
    found = critical_sharpness(point(1, -2, 0.5, 3, 1), Quadratic(matrix), ONE, first=first, tolerance=1e-8)
    assert math.isclose(found.sharpness, expected, rel_tol=1e-7)
    assert found.low <= 2 / expected <= found.high
    assert math.isclose(found.rate, 2 / found.sharpness)
    assert 1 - found.low / found.high <= 1e-8
    rough = critical_sharpness(point(1, -2, 0.5, 3, 1), Quadratic(matrix), ONE, first=first)
    assert math.isclose(rough.sharpness, expected, rel_tol=0.01)
    assert rough.passes < found.passes


def test_along_an_eigenvector_it_is_the_eigenvalue() -> None:
    model, loss = point(2, 0, 0, 0, 0), Quadratic(torch.diag(DIAGONAL))
    found = critical_sharpness(model, loss, ONE, tolerance=1e-8).sharpness
    assert math.isclose(found, 4, rel_tol=1e-7)
    assert math.isclose(found, float(hessian_eigenvalues(model, loss, ONE).values[0]), rel_tol=1e-7)


def test_a_search_ends_at_neighbors() -> None:
    """With a tolerance below the distance of two neighbors it would never end."""
    model, loss = point(3, 0, 0, 0, 0), Quadratic(torch.diag(torch.tensor([3.0, 1, 1, 1, 1], dtype=F64)))
    found = critical_sharpness(model, loss, ONE, tolerance=1e-17)
    assert math.nextafter(found.low, math.inf) == found.high
    assert math.isclose(found.sharpness, 3, rel_tol=1e-12)


def test_an_update_has_its_own_rate() -> None:
    # eta = 2 g.d / d^T A d for a direction d
    w, matrix = torch.tensor([1.0, -2, 0.5, 3, 1], dtype=F64), torch.diag(DIAGONAL.abs())
    d = torch.tensor([1.0, -1, 0.5, 1, 0], dtype=F64)
    expected = float(d @ matrix @ d / (matrix @ w).dot(d))
    found = critical_sharpness(
        point(1, -2, 0.5, 3, 1), Quadratic(matrix), ONE, direction=[d[:2], d[2:]], tolerance=1e-8
    )
    assert math.isclose(found.sharpness, expected, rel_tol=1e-7)


def test_no_rise_no_direction_and_no_number() -> None:
    zero, ones = torch.zeros(5, 5, dtype=F64), torch.ones(5, dtype=F64)
    falls = critical_sharpness(point(0, 0, 0, 0, 0), Quadratic(zero, ones), ONE)
    assert (falls.sharpness, falls.rate, falls.high) == (0.0, math.inf, math.inf)
    assert math.isnan(critical_sharpness(point(0, 0, 0, 0, 0), Quadratic(symmetric(0)), ONE).sharpness)
    assert math.isnan(critical_sharpness(point(torch.nan, 0, 0, 0, 0), Quadratic(symmetric(0)), ONE).sharpness)
    flat = critical_sharpness(point(0, 0, 0, 0, 0), Quadratic(zero), ONE, direction=[ones[:2], ones[2:]])
    assert math.isnan(flat.sharpness)
    uphill = [torch.tensor([-1.0, 0], dtype=F64), torch.zeros(3, dtype=F64)]
    found = critical_sharpness(point(1, 0, 0, 0, 0), Quadratic(torch.eye(5, dtype=F64)), ONE, direction=uphill)
    assert math.isnan(found.sharpness)


def test_a_loss_that_is_not_a_number_has_risen() -> None:
    def walled(model: torch.nn.Module, examples: torch.Tensor) -> torch.Tensor:
        x = model.first[0]  # type: ignore[index]
        return examples * (x + torch.where(x < -1, torch.nan, 0.0))

    found = critical_sharpness(point(0, 0, 0, 0, 0), walled, ONE, tolerance=1e-6)
    assert math.isclose(found.rate, 1, rel_tol=1e-5)


def test_it_is_at_most_the_largest_eigenvalue_near_a_minimum() -> None:
    model, batches = net(), [batch(0, 10), batch(1, 10)]
    found = critical_sharpness(model, loss_fn, batches)
    assert 0 < found.sharpness < 10 * float(hessian_eigenvalues(model, loss_fn, batches).values[0])
    assert 5 < found.passes < 25


def test_rounding_is_no_curvature() -> None:
    # the loss falls by 1e-10, which fp32 does not see beside 1000
    def far(model: torch.nn.Module, examples: torch.Tensor) -> torch.Tensor:
        return examples * (1000 + model.flat.square().sum())  # type: ignore[operator]

    for dtype, resolved in ((torch.float64, True), (torch.float32, False)):
        model = point(1e-5, 0, 0, 0, 0).to(dtype)
        found = critical_sharpness(model, far, [torch.ones(1, dtype=dtype)])
        assert math.isclose(found.sharpness, 2, rel_tol=0.01) == resolved
        assert math.isnan(found.sharpness) != resolved


def test_refusals() -> None:
    model, loss = point(3, -4, 0, 0, 0), Quadratic(torch.eye(5, dtype=F64))
    for wrong in ({"first": 0}, {"first": -1}, {"tolerance": 0}, {"tolerance": 2}):
        with pytest.raises(ArgumentError, match=f"{next(iter(wrong))} must be"):
            critical_sharpness(model, loss, ONE, **wrong)
    with pytest.raises(ArgumentError, match="direction must have one tensor for each of 2"):
        critical_sharpness(model, loss, ONE, direction=[torch.ones(5)])
    with pytest.raises(LossError, match="different sizes"):
        critical_sharpness(model, loss.mean, [torch.ones(2, dtype=F64), torch.ones(3, dtype=F64)])
    with pytest.raises(ArgumentError, match="at least one batch"):
        critical_sharpness(model, loss, [])
