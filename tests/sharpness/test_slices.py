"""Slices of quadratics by hand, filter normalization, and the line between two models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import batch, loss_fn, net
from torch import Tensor, nn

from lowland.core.errors import ArgumentError, LossError, ParameterError
from lowland.sharpness import loss_between, loss_line, loss_plane
from lowland.sharpness.slices import random_direction

F64 = torch.float64
ONE = [torch.ones(2, dtype=F64)]


def squares(model: Any, examples: Tensor) -> Tensor:
    """Half the squared norm of all weights."""
    return examples * sum(p.square().sum() for p in model.parameters()) / 2


def mean_loss(model: nn.Module, batches: Any) -> Tensor:
    return torch.cat([loss_fn(model.eval(), part) for part in batches]).mean()


def test_every_filter_has_its_length() -> None:
    torch.manual_seed(0)
    params = [p.detach() for p in nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(5, 6)).parameters()]
    params[0][1] = 0
    direction = random_direction(params, torch.Generator().manual_seed(0))
    for p, d in zip(params, direction, strict=True):
        if p.dim() == 1:
            assert not d.any()
        else:
            torch.testing.assert_close(d.flatten(1).norm(dim=1), p.flatten(1).norm(dim=1))
    assert not direction[0][1].any()
    again = random_direction(params, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(direction, again, strict=True))


def test_a_line_and_a_plane_of_a_quadratic() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 4).double()
    generator = torch.Generator().manual_seed(3)
    d, e = (random_direction(list(model.parameters()), generator) for _ in range(2))
    w = [p.detach() for p in model.parameters()]

    def at(a: float, b: float) -> Tensor:
        return sum((p + a * x + b * y).square().sum() for p, x, y in zip(w, d, e, strict=True)) / 2  # type: ignore[return-value]

    line = loss_line(model, squares, ONE, span=0.5, points=5, seed=3)
    assert line.positions.tolist() == [-0.5, -0.25, 0, 0.25, 0.5]
    torch.testing.assert_close(line.losses, torch.stack([at(a, 0) for a in line.positions.tolist()]))
    plane = loss_plane(model, squares, ONE, points=3, seed=3)
    expected = torch.stack([torch.stack([at(a, b) for b in (-1.0, 0.0, 1.0)]) for a in (-1.0, 0.0, 1.0)])
    torch.testing.assert_close(plane.losses, expected)
    other = loss_line(model, squares, ONE, span=0.5, points=5, seed=4)
    assert not torch.equal(other.losses, line.losses)


def test_the_middle_is_the_model() -> None:
    model, batches = net(norm=True, dropout=0.5, odd=True), [batch(0, 6), batch(1, 3)]
    expected = mean_loss(model, batches).detach()
    torch.testing.assert_close(loss_line(model, loss_fn, batches, points=3).losses[1], expected)
    torch.testing.assert_close(loss_plane(model, loss_fn, batches, points=3).losses[1, 1], expected)


def test_the_ends_of_a_line_are_the_two_models() -> None:
    one, other = (net(seed, norm=True, odd=True) for seed in (0, 1))
    for i, model in enumerate((one, other)):  # with running statistics and a frozen layer of their own
        model.train()
        model(batch(i + 5)[0])
        model.eval()
    batches = [batch(0, 6), batch(1, 3)]
    found = loss_between(one, other.state_dict(), loss_fn, batches, points=13)
    ends = (0.0, 1.0)
    assert all(end in found.positions.tolist() for end in ends)
    for end, model in zip(ends, (one, other), strict=True):
        (place,) = (found.positions == end).nonzero()[0].tolist()
        torch.testing.assert_close(found.losses[place], mean_loss(model, batches).detach(), rtol=1e-10, atol=0)


def test_between_by_hand() -> None:
    one, other = nn.Linear(2, 2).double(), nn.Linear(2, 2).double()
    w, v = (torch.cat([p.detach().reshape(-1) for p in m.parameters()]) for m in (one, other))
    found = loss_between(one, other.state_dict(), squares, ONE, beyond=0.5, points=5)
    expected = torch.stack([(w + a * (v - w)).square().sum() / 2 for a in (-0.5, 0, 0.5, 1, 1.5)])
    torch.testing.assert_close(found.losses, expected)


def test_a_loss_that_is_not_finite_stays() -> None:
    def walled(model: Any, examples: Tensor) -> Tensor:
        return examples * sum((4 - p.square().sum()).log().sum() for p in model.parameters())

    model = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(0.5)
    losses = loss_line(model, walled, ONE, span=8.0, points=5).losses
    assert losses[2].isfinite()
    assert losses[[0, -1]].isnan().all()


def test_tied_weights_have_one_value_at_the_other_end() -> None:
    """The last of two values would be the end of the line."""
    tied = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).double()
    tied[1].weight = tied[0].weight
    state = {name: t.detach().clone() for name, t in tied.state_dict().items()}
    assert loss_between(tied, state, squares, ONE, points=3).losses.isfinite().all()
    with pytest.raises(ParameterError, match=r"one value for 0\.weight and 1\.weight, which are one tensor"):
        loss_between(tied, state | {"1.weight": state["1.weight"] + 1}, squares, ONE, points=3)


def test_refusals() -> None:
    model = net()
    for wrong in ({"span": 0}, {"span": float("inf")}, {"points": 2}, {"points": 4}, {"seed": -1}):
        with pytest.raises(ArgumentError, match=f"{next(iter(wrong))} must be"):
            loss_line(model, loss_fn, [batch()], **wrong)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="two dimensions or more"):
        loss_line(nn.BatchNorm1d(5).double(), squares, ONE)
    with pytest.raises(ParameterError, match=r"last\.weight is missing or has another shape"):
        loss_between(model, {n: t[:1] if n == "last.weight" else t for n, t in model.state_dict().items()}, loss_fn, [])
    with pytest.raises(ArgumentError, match="beyond must be"):
        loss_between(model, model.state_dict(), loss_fn, [batch()], beyond=-1)

    def mean(model: Any, examples: Any) -> Tensor:
        return loss_fn(model, examples).mean()

    with pytest.raises(LossError, match="batches of different sizes, 3 to 6"):
        loss_plane(model, mean, [batch(0, 6), batch(1, 3)])
