"""The worst-case sharpness by hand, by brute force and against m-sharpness."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import batch, loss_fn, net
from quadratics import DIAGONAL, ONE, Quadratic, point, symmetric

from lowland import Adaptive
from lowland.core.errors import ArgumentError, LossError
from lowland.sharpness import m_sharpness, worst_sharpness

F64 = torch.float64


def test_one_l2_step_is_m_sharpness() -> None:
    model, batches = net(norm=True, dropout=0.5, odd=True), [batch(0, 10), batch(1, 7)]
    for m in (3, 10):
        value, _ = worst_sharpness(model, loss_fn, batches, rho=0.3, m=m, steps=1)
        expected = m_sharpness(model, loss_fn, batches, rho=0.3, m=m)
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)


def test_l2_at_the_minimum_is_the_largest_eigenvalue() -> None:
    # max of u^T A u / 2 over ||u|| <= rho; at w = 0 the gradient is zero, so only a random start can find it
    matrix, rho = symmetric(3), 0.3
    expected = rho**2 * torch.linalg.eigvalsh(matrix)[-1] / 2
    model, loss = point(0, 0, 0, 0, 0), Quadratic(matrix)
    assert worst_sharpness(model, loss, ONE, rho=rho, steps=3).value == 0
    found, error = worst_sharpness(model, loss, ONE, rho=rho, steps=200, step_size=1.0, starts=2)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)
    assert error.isnan()  # one micro-batch


def test_l2_away_from_the_minimum_by_brute_force() -> None:
    matrix, linear, rho = symmetric(5, 2), torch.tensor([0.3, -0.2], dtype=F64), 0.5
    loss, w = Quadratic(matrix, linear), torch.tensor([0.4, 0.1], dtype=F64)
    model = point(0.4, 0.1)
    angles = torch.linspace(0, 2 * torch.pi, 20001, dtype=F64)
    circle = w + rho * torch.stack([angles.cos(), angles.sin()], 1)
    expected = max(loss.value(x) for x in circle) - loss.value(w)
    found = worst_sharpness(model, loss, ONE, rho=rho, steps=100, step_size=0.5).value
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert found <= expected * (1 + 1e-6)


@pytest.mark.parametrize("adaptive", [False, True])
def test_linf_on_a_line_is_the_l1_norm(adaptive: bool) -> None:
    linear, w = torch.tensor([0.5, -2.0, 0.0, 1.0, 3.0], dtype=F64), torch.tensor([1.0, 2, 3, -4, 0], dtype=F64)
    loss, rho = Quadratic(torch.zeros(5, 5, dtype=F64), linear), 0.1
    sizes = w.abs() + 0.25 if adaptive else torch.ones(5, dtype=F64)
    expected = rho * (sizes * linear).abs().sum()
    for steps in (1, 4):
        found = worst_sharpness(
            point(1, 2, 3, -4, 0), loss, ONE, rho=rho, norm="linf", adaptive=adaptive, eta=0.25, steps=steps
        ).value
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_linf_finds_the_best_corner() -> None:
    # a convex loss has its maximum over a cube at one of the 32 corners
    draw = torch.randn(5, 5, dtype=F64, generator=torch.Generator().manual_seed(0))
    loss, rho = Quadratic(draw @ draw.T, torch.tensor([1.0, 2, 0.5, -1, 3], dtype=F64)), 0.2
    corners = rho * torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=F64)] * 5)
    expected = max(loss.value(x) for x in corners)
    found = worst_sharpness(point(0, 0, 0, 0, 0), loss, ONE, rho=rho, norm="linf", steps=20, starts=5).value
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_adaptive_is_the_ball_in_scaled_weights() -> None:
    # with x = T u the adaptive worst case of A is the plain worst case of T A T, here on a loss without a slope
    matrix, w, rho = symmetric(7), torch.tensor([1.0, -2, 0.5, 3, 1], dtype=F64), 0.05
    loss = Quadratic(matrix, -matrix @ w)  # its minimum, or saddle, is w
    scaled = w.abs()[:, None] * matrix * w.abs()
    expected = rho**2 * torch.linalg.eigvalsh(scaled)[-1] / 2
    found = worst_sharpness(
        point(1, -2, 0.5, 3, 1), loss, ONE, rho=rho, adaptive=True, steps=300, step_size=1.0, starts=2
    ).value
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_one_adaptive_step_is_that_of_asam() -> None:
    model, (inputs, targets, _) = net(), batch(0, 6)
    loss = loss_fn(model, (inputs, targets)).mean()
    params = list(model.parameters())
    e = Adaptive(eta=0.1).ascent([p.detach() for p in params], list(torch.autograd.grad(loss, params)), 0.2)
    moved = net()
    with torch.no_grad():
        for p, t in zip(moved.parameters(), e, strict=True):
            p += t
    expected = loss_fn(moved, (inputs, targets)).mean() - loss
    found = worst_sharpness(model, loss_fn, [batch(0, 6)], rho=0.2, adaptive=True, eta=0.1, steps=1).value
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=0)


def test_a_layer_and_its_inverse_scale_do_not_change_the_adaptive_value() -> None:
    torch.manual_seed(0)
    chain = torch.nn.Sequential(torch.nn.Linear(5, 4, bias=False), torch.nn.Linear(4, 3, bias=False)).double()
    before = {k: worst_sharpness(chain, loss_fn, [batch()], rho=0.05, adaptive=k).value for k in (True, False)}
    with torch.no_grad():
        chain[0].weight.mul_(10)
        chain[1].weight.div_(10)
    after = {k: worst_sharpness(chain, loss_fn, [batch()], rho=0.05, adaptive=k).value for k in (True, False)}
    torch.testing.assert_close(after[True], before[True], rtol=1e-8, atol=0)
    assert (after[False] - before[False]).abs() > 0.1 * before[False]


def test_more_starts_and_more_steps_never_lower_it() -> None:
    model, batches = net(), [batch(0, 8)]
    few = worst_sharpness(model, loss_fn, batches, rho=1.0, m=4).value
    many = worst_sharpness(model, loss_fn, batches, rho=1.0, m=4, starts=3).value
    assert few <= many <= 10
    assert torch.equal(many, worst_sharpness(model, loss_fn, batches, rho=1.0, m=4, starts=3).value)
    loss = Quadratic(symmetric(3))  # at its minimum only the random starts move
    seeds = [worst_sharpness(point(0, 0, 0, 0, 0), loss, ONE, steps=1, starts=2, seed=seed).value for seed in (0, 1)]
    assert seeds[0] != seeds[1]


def test_micro_batches_weigh_by_their_size_or_count() -> None:
    scales = torch.tensor([1.0, 3, 2, 6, 4], dtype=F64)
    model, loss, rho = point(3, -4, 0, 0, 0), Quadratic(torch.eye(5, dtype=F64)), 0.1
    rise = ((5 + rho) ** 2 - 25) / 2
    found, error = worst_sharpness(model, loss, [scales], rho=rho, m=2)
    torch.testing.assert_close(found, scales.mean() * rise, rtol=1e-9, atol=0)
    means, sizes = torch.tensor([2.0, 4, 4], dtype=F64), torch.tensor([0.4, 0.4, 0.2], dtype=F64)
    by_hand = (sizes.square() * (means - means @ sizes).square()).sum().mul(3 / 2).sqrt() * rise
    torch.testing.assert_close(error, by_hand, rtol=1e-9, atol=0)
    counted = worst_sharpness(model, loss.counted, [scales], rho=rho, m=2).value
    torch.testing.assert_close(counted, torch.tensor(rise, dtype=F64), rtol=1e-9, atol=0)


def test_means_are_exact_or_refused() -> None:
    scales = torch.tensor([1.0, 3, 2, 6], dtype=F64)
    model, loss = point(3, -4, 0, 0, 0), Quadratic(torch.eye(5, dtype=F64))
    by_example = worst_sharpness(model, loss, [scales], rho=0.1, m=2).value
    found = worst_sharpness(model, loss.mean, [scales[:2], scales[2:]], rho=0.1, m=2).value
    torch.testing.assert_close(found, by_example)
    with pytest.raises(LossError, match="batches of different sizes, 1 to 3"):
        worst_sharpness(model, loss.mean, [scales[:3], scales[3:]], rho=0.1, m=3)
    with pytest.raises(LossError, match="returned a mean"):
        worst_sharpness(model, loss.mean, [scales], rho=0.1, m=3)


def test_nan_is_not_hidden() -> None:
    def walled(model: Any, examples: torch.Tensor) -> torch.Tensor:
        return examples * -(1 - model.flat).log().sum()  # infinite at 1, NaN beyond it

    inside = point(0.5, 0, 0, 0, 0)
    assert worst_sharpness(inside, walled, ONE, rho=0.4).value > 0
    assert worst_sharpness(inside, walled, ONE, rho=0.6).value.isnan()
    broken = point(torch.nan, 0, 0, 0, 0)
    assert worst_sharpness(broken, Quadratic(torch.diag(DIAGONAL)), ONE).value.isnan()


@pytest.mark.parametrize(
    "wrong",
    [{"rho": -1}, {"rho": float("nan")}, {"m": 0}, {"steps": 0}, {"starts": 0}, {"seed": -1}, {"eta": -1},
     {"norm": "l1"}, {"step_size": 0}, {"step_size": 2}],
)  # fmt: skip
def test_bad_arguments(wrong: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match=f"{next(iter(wrong))} must be"):
        worst_sharpness(point(1, 1, 1, 1, 1), Quadratic(torch.eye(5, dtype=F64)), ONE, **wrong)  # type: ignore[arg-type]
