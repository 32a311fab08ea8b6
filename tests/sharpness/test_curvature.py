"""Eigenvalues, trace and spectral density against the full Hessian, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from problems import batch, loss_fn, net
from quadratics import DIAGONAL, Quadratic, point, symmetric
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from lowland import Loss
from lowland.core.errors import ArgumentError, LossError, MissingExtraError
from lowland.executors.modes import branch
from lowland.sharpness import hessian_density, hessian_eigenvalues, hessian_trace

F64 = torch.float64
BATCHES = [batch(0, 10), batch(1, 7)]


def full(model: nn.Module, loss: Any = loss_fn, batches: Any = BATCHES) -> Tensor:
    """The Hessian of the mean loss in evaluation mode, by torch.func, shape ``(n, n)``."""
    model.eval()
    named = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in named.values()]

    def mean(flat: Tensor) -> Tensor:
        parts = zip(named.items(), flat.split(sizes), strict=True)
        weights = {name: part.view_as(p) for (name, p), part in parts}
        called = lambda inputs: functional_call(model, weights, (inputs,))  # noqa: E731
        return torch.cat([loss(called, part) for part in batches]).mean()

    return jacrev(jacrev(mean))(torch.cat([p.reshape(-1) for p in named.values()]))


def counted(model: Any, examples: Any) -> Loss:
    """The examples of class 0 do not count."""
    losses, kept = loss_fn(model, examples), examples[1] != 0
    return Loss((losses * kept).sum(), kept.sum())


def test_the_largest_and_the_smallest_eigenvalues() -> None:
    model = net(norm=True, dropout=0.5)
    expected = torch.linalg.eigvalsh(full(model))
    assert len(expected) > 64  # by ARPACK
    for which, ordered in {
        "largest": expected.flip(0),
        "smallest": expected,
        "magnitude": expected[expected.abs().argsort(descending=True)],
    }.items():
        values, residuals = hessian_eigenvalues(model, loss_fn, BATCHES, k=3, which=which, tol=1e-10)  # type: ignore[arg-type]
        torch.testing.assert_close(values, ordered[:3], rtol=1e-6, atol=1e-9)
        assert residuals.max() < 1e-6


def test_residuals_bound_the_error() -> None:
    model = net()
    values, residuals = hessian_eigenvalues(model, loss_fn, BATCHES, k=2, tol=0.3)
    expected = torch.linalg.eigvalsh(full(model))
    for value, residual in zip(values, residuals, strict=True):
        assert (expected - value).abs().min() <= residual + 1e-12


def test_tied_frozen_and_unused_parameters() -> None:
    model = net(odd=True)  # functional_call replaces a tied weight in both places
    expected = torch.linalg.eigvalsh(full(model))
    found = hessian_eigenvalues(model, loss_fn, BATCHES, k=4, tol=1e-10).values
    torch.testing.assert_close(found, expected.flip(0)[:4], rtol=1e-6, atol=1e-9)


def test_a_small_model_is_computed_in_full() -> None:
    matrix = symmetric(0)
    model, loss, scales = point(1, 2, 3, 4, 5), Quadratic(matrix), [torch.tensor([1.0, 3], dtype=F64)]
    expected = 2 * torch.linalg.eigvalsh(matrix).flip(0)
    values, residuals = hessian_eigenvalues(model, loss, scales, k=5)
    torch.testing.assert_close(values, expected)
    assert residuals.max() < 1e-12
    trace, error = hessian_trace(model, loss, scales)
    torch.testing.assert_close(trace, 2 * matrix.trace())
    assert error == 0
    density = hessian_density(model, loss, scales)
    torch.testing.assert_close(density.nodes[0], expected.flip(0))
    assert torch.equal(density.weights, torch.full((1, 5), 0.2, dtype=F64))


def test_losses_with_counts_and_means() -> None:
    model = net()
    kept = [tuple(t[part[1] != 0] for t in part) for part in BATCHES]
    expected = torch.linalg.eigvalsh(full(model, batches=kept))[-1:]
    torch.testing.assert_close(
        hessian_eigenvalues(model, counted, BATCHES, tol=1e-10).values, expected, rtol=1e-6, atol=0
    )

    def mean(model: Any, examples: Any) -> Tensor:
        return loss_fn(model, examples).mean()

    even = [batch(0, 8), batch(1, 8)]
    expected = torch.linalg.eigvalsh(full(model, batches=even))[-1:]
    torch.testing.assert_close(hessian_eigenvalues(model, mean, even, tol=1e-10).values, expected, rtol=1e-6, atol=0)
    for measure in (hessian_eigenvalues, hessian_trace, hessian_density):
        with pytest.raises(LossError, match="batches of different sizes, 7 to 10"):
            measure(model, mean, BATCHES)


def test_a_linear_loss_has_no_curvature() -> None:
    def linear(model: Any, examples: Tensor) -> Tensor:
        return examples * sum(p.sum() for p in model.parameters())

    model, ones = nn.Linear(40, 4).double(), [torch.ones(3, dtype=F64)]
    assert hessian_trace(model, linear, ones).value == 0
    for found in hessian_eigenvalues(model, linear, ones, k=2):
        assert torch.equal(found, torch.zeros(2, dtype=F64))
    density = hessian_density(model, linear, ones)
    assert density.nodes.eq(0).all()
    torch.testing.assert_close(density.weights.sum(1), torch.ones(3, dtype=F64))


def test_the_trace_and_its_error() -> None:
    model = net()
    expected = full(model).trace()
    found = [hessian_trace(model, loss_fn, BATCHES, samples=8, seed=seed) for seed in range(40)]
    values, errors = (torch.stack(column) for column in zip(*found, strict=True))
    spread = values.std()
    assert (values.mean() - expected).abs() < 4 * spread / 40**0.5
    torch.testing.assert_close(errors.square().mean().sqrt(), spread, rtol=0.4, atol=0)
    assert torch.equal(values[3], hessian_trace(model, loss_fn, BATCHES, samples=8, seed=3).value)


def test_the_moments_of_the_density() -> None:
    model, depth, seed = net(), 12, 5
    matrix = full(model)
    density = hessian_density(model, loss_fn, BATCHES, depth=depth, repeats=2, seed=seed)
    assert density.nodes.shape == (2, depth)
    with branch(torch.device("cpu"), seed):  # the vectors that curvlinops has drawn
        draws = [torch.randn(len(matrix), dtype=F64) for _ in range(2)]
    vectors = [v / v.norm() for v in draws]
    for power in range(8):
        expected = torch.stack([v @ torch.linalg.matrix_power(matrix, power) @ v for v in vectors]).mean()
        torch.testing.assert_close(density.moment(power), expected, rtol=1e-6, atol=1e-9)
    many = hessian_density(model, loss_fn, BATCHES, depth=4, repeats=60)
    spread = (many.weights * many.nodes).sum(1).std() / 60**0.5
    assert (many.moment(1) - matrix.trace() / len(matrix)).abs() < 4 * spread


def test_a_smoothed_density_integrates_to_one() -> None:
    density = hessian_density(net(), loss_fn, BATCHES, depth=10)
    grid, heights = density.smoothed(2000)
    assert np.isclose(np.trapezoid(heights, grid), 1, atol=1e-3)
    torch.testing.assert_close(torch.trapezoid(grid * heights, grid), density.moment(1), rtol=1e-2, atol=1e-4)
    flat = hessian_density(point(1, 2, 3, 4, 5), Quadratic(torch.eye(5, dtype=F64)), [torch.ones(1, dtype=F64)])
    grid, heights = flat.smoothed(2000)
    assert np.isclose(np.trapezoid(heights, grid), 1, atol=1e-3)


def test_a_hessian_of_low_rank() -> None:
    # all vectors span two directions only: the space of the two examples, and the rest
    model = nn.Linear(100, 1, bias=False).double()
    inputs = torch.eye(100, dtype=F64)[:2]

    def squared(model: Any, examples: Tensor) -> Tensor:
        return model(examples).square().sum(1)

    density = hessian_density(model, squared, [inputs], depth=40)
    torch.testing.assert_close(density.weights.sum(1), torch.ones(3, dtype=F64))
    assert (density.nodes.min() > -1e-9) & (density.nodes.max() < 1 + 1e-9)
    torch.testing.assert_close(hessian_eigenvalues(model, squared, [inputs], k=3).values[:2], torch.ones(2, dtype=F64))


def test_attention_is_differentiated_twice() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True).double()
    inputs = torch.randn(3, 4, 8, dtype=F64)

    def squared(model: Any, examples: Tensor) -> Tensor:
        return model(examples).square().mean((1, 2))

    assert hessian_trace(model, squared, [inputs], samples=2).value.isfinite()


def test_nan_is_not_hidden() -> None:
    for model, loss, examples in (
        (point(torch.nan, 0, 0, 0, 0), Quadratic(torch.diag(DIAGONAL)), [torch.ones(1, dtype=F64)]),
        (net(), loss_fn, [(torch.full((4, 5), torch.nan, dtype=F64), torch.arange(4) % 3)]),
    ):
        if isinstance(loss, Quadratic):
            loss.value = lambda x: (x**3).sum()  # type: ignore[method-assign]
        assert hessian_eigenvalues(model, loss, examples, k=2).values.isnan().all()
        assert all(part.isnan() for part in hessian_trace(model, loss, examples))
        density = hessian_density(model, loss, examples)
        assert density.nodes.isnan().all()


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    with pytest.raises(ArgumentError, match="k must be <= 5"):
        hessian_eigenvalues(point(1, 1, 1, 1, 1), Quadratic(symmetric(0)), [torch.ones(1, dtype=F64)], k=6)
    for wrong in ({"k": 0}, {"which": "both"}, {"tol": 0}, {"iterations": 0}, {"seed": -1}):
        with pytest.raises(ArgumentError, match=f"{next(iter(wrong))} must be"):
            hessian_eigenvalues(model, loss_fn, BATCHES, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="samples must be"):
        hessian_trace(model, loss_fn, BATCHES, samples=1)
    with pytest.raises(ArgumentError, match="depth must be"):
        hessian_density(model, loss_fn, BATCHES, depth=1)
    with pytest.raises(ArgumentError, match="iterations must suffice for 5 eigenvalues"):
        hessian_eigenvalues(model, loss_fn, BATCHES, k=5, tol=1e-14, iterations=1)
    monkeypatch.setitem(__import__("sys").modules, "curvlinops", None)
    for measure in (hessian_eigenvalues, hessian_trace, hessian_density):
        with pytest.raises(MissingExtraError, match=r"pip install 'lowland\[curvature\]'"):
            measure(model, loss_fn, BATCHES)
