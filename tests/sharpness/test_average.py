"""The average-case sharpness by hand, and its error against the spread of many estimates."""

from __future__ import annotations

import pytest
import torch
from problems import batch, loss_fn, net
from quadratics import DIAGONAL, ONE, Quadratic, point, symmetric

from lowland.core.errors import ArgumentError, LossError
from lowland.sharpness import average_sharpness, hessian_trace

F64 = torch.float64


def test_l2_is_the_trace() -> None:
    matrix, rho = symmetric(3), 0.3
    found, error = average_sharpness(point(0, 0, 0, 0, 0), Quadratic(matrix), ONE, rho=rho, directions=800)
    expected = rho**2 * matrix.trace() / (2 * 5)
    assert (found - expected).abs() < 4 * error
    assert error < 0.05 * expected


def test_linf_of_a_diagonal_is_exact() -> None:
    # every corner of the cube has the same loss: rho^2 tr(A) / 2
    loss, rho = Quadratic(torch.diag(DIAGONAL)), 0.3
    found, error = average_sharpness(point(0, 0, 0, 0, 0), loss, ONE, rho=rho, norm="linf", directions=3)
    torch.testing.assert_close(found, rho**2 * DIAGONAL.sum() / 2, rtol=1e-12, atol=0)
    assert error < 1e-12


def test_adaptive_linf_scales_with_the_weights() -> None:
    w = torch.tensor([1.0, -2, 0.5, 3, 0], dtype=F64)
    loss = Quadratic(torch.diag(DIAGONAL), -DIAGONAL * w)
    found = average_sharpness(
        point(1, -2, 0.5, 3, 0), loss, ONE, rho=0.1, norm="linf", adaptive=True, eta=0.5, directions=2
    ).value
    torch.testing.assert_close(found, 0.1**2 * (DIAGONAL * (w.abs() + 0.5) ** 2).sum() / 2, rtol=1e-10, atol=0)


def test_adaptive_l2_is_the_trace_of_the_scaled_matrix() -> None:
    w = torch.tensor([1.0, -2, 0.5, 3, 1], dtype=F64)
    loss, rho = Quadratic(torch.diag(DIAGONAL), -DIAGONAL * w), 0.1
    found, error = average_sharpness(point(1, -2, 0.5, 3, 1), loss, ONE, rho=rho, adaptive=True, directions=800)
    expected = rho**2 * (DIAGONAL * w**2).sum() / (2 * 5)
    assert (found - expected).abs() < 4 * error < 0.5 * expected


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [1, 4])
def test_the_error_is_the_spread_of_estimates(pieces: int) -> None:
    # within one micro-batch the directions vary; over several also their scales
    matrix, scales = symmetric(4), torch.ones(pieces, dtype=F64)
    found = [
        average_sharpness(point(0, 0, 0, 0, 0), Quadratic(matrix), [scales], rho=0.3, m=1, directions=6, seed=seed)
        for seed in range(60)
    ]
    values, errors = (torch.stack(column) for column in zip(*found, strict=True))
    # the mean of the squared errors is the variance of the values, to the 3 sigma of 60 draws
    torch.testing.assert_close(errors.square().mean().sqrt(), values.std(), rtol=0.35, atol=0)


@pytest.mark.slow
def test_the_error_covers_the_choice_of_examples() -> None:
    draw = torch.Generator().manual_seed(0)
    matrix, found = symmetric(4), []
    for seed in range(60):
        scales = torch.rand(8, dtype=F64, generator=draw)
        found.append(average_sharpness(point(0, 0, 0, 0, 0), Quadratic(matrix), [scales], rho=0.3, m=2, seed=seed))
    values, errors = (torch.stack(column) for column in zip(*found, strict=True))
    torch.testing.assert_close(errors.square().mean().sqrt(), values.std(), rtol=0.35, atol=0)


def test_a_smooth_network_agrees_with_the_trace() -> None:
    model, batches, rho = net(norm=True, dropout=0.5), [batch(0, 20)], 0.01
    found, error = average_sharpness(model, loss_fn, batches, rho=rho, directions=300)
    trace = hessian_trace(model, loss_fn, batches, samples=1000).value  # exact: more samples than weights
    expected = rho**2 * trace / (2 * sum(p.numel() for p in model.parameters()))
    assert (found - expected).abs() < 4 * error < 0.5 * expected


def test_the_same_seed_gives_the_same_value() -> None:
    model, batches = net(norm=True, dropout=0.5), [batch(0, 10)]
    state = torch.get_rng_state()
    one = average_sharpness(model, loss_fn, batches, m=4, directions=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(one.value, average_sharpness(model, loss_fn, batches, m=4, directions=2).value)
    assert not torch.equal(one.value, average_sharpness(model, loss_fn, batches, m=4, directions=2, seed=1).value)


def test_rho_zero_means_and_nan() -> None:
    scales = torch.tensor([1.0, 3, 2], dtype=F64)
    model, loss = point(3, -4, 0, 0, 0), Quadratic(torch.eye(5, dtype=F64))
    assert average_sharpness(model, loss, [scales], rho=0.0).value == 0
    with pytest.raises(LossError, match="batches of different sizes, 1 to 2"):
        average_sharpness(model, loss.mean, [scales[:2], scales[2:]], rho=0.1, m=2)
    value, error = average_sharpness(point(torch.nan, 0, 0, 0, 0), loss, [scales], m=1)
    assert value.isnan()
    assert error.isnan()


@pytest.mark.parametrize("wrong", [{"rho": -1}, {"m": 0}, {"directions": 0}, {"seed": -1}, {"norm": "l1"}])
def test_bad_arguments(wrong: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match=f"{next(iter(wrong))} must be"):
        average_sharpness(point(1, 1, 1, 1, 1), Quadratic(torch.eye(5, dtype=F64)), ONE, **wrong)  # type: ignore[arg-type]
