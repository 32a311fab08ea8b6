from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy as torch_cross_entropy

from lowland.core.errors import ArgumentError
from lowland.sharpness import m_sharpness


class Point(nn.Module):
    """Weights of their own; the examples only scale the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, -4.0], dtype=torch.float64))


def quadratic(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """a_i ||w||^2 / 2, one loss per example."""
    return batch * model.w.square().sum() / 2


def test_quadratic_has_the_closed_form():
    # ||w|| = 5 and g = a w, so one step along it gives a ((5 + rho)^2 - 25) / 2, whatever a micro-batch's scale
    curvatures = torch.tensor([1.0, 3.0, 2.0, 6.0, 4.0], dtype=torch.float64)
    rho = 0.1
    expected = curvatures.mean() * ((5 + rho) ** 2 - 25) / 2
    found = m_sharpness(Point(), quadratic, [curvatures], rho=rho, m=2)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_smaller_micro_batches_see_more():
    # two examples that pull in opposite directions: together flat, each on its own steep
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)

    def pull(model, batch):
        return batch * model.w.sum()

    assert m_sharpness(Point(), pull, [signs], rho=0.1, m=2).abs() < 1e-10
    expected = torch.tensor(0.1 * 2**0.5, dtype=torch.float64)
    torch.testing.assert_close(m_sharpness(Point(), pull, [signs], rho=0.1, m=1), expected)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def cross_entropy(model, batch):
    x, y = batch
    return torch_cross_entropy(model(x), y, reduction="none")


def test_nothing_is_left_behind():
    model = network()
    model[3].eval()  # a mode of its own must come back, too
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    noise = torch.get_rng_state()
    value = m_sharpness(model, cross_entropy, [(torch.randn(10, 6), torch.arange(10) % 3)], m=4)
    torch.set_rng_state(noise)
    assert value > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert model.training
    assert not model[3].training


def test_weights_return_after_an_error():
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    calls = []

    def fails(model, batch):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return cross_entropy(model, batch)

    with pytest.raises(KeyboardInterrupt):
        m_sharpness(model, fails, [(torch.randn(4, 6), torch.arange(4) % 3)])
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert model.training


def test_rho_zero_is_no_rise():
    batch = (torch.randn(4, 6), torch.arange(4) % 3)
    assert m_sharpness(network(), cross_entropy, [batch], rho=0.0) == 0


@pytest.mark.parametrize("wrong", [{"rho": -0.1}, {"m": 0}, {"m": 2.5}])
def test_bad_arguments(wrong):
    with pytest.raises(ArgumentError, match=f"{next(iter(wrong))} must be"):
        m_sharpness(network(), cross_entropy, [(torch.randn(4, 6), torch.arange(4) % 3)], **wrong)


def test_no_batches():
    with pytest.raises(ArgumentError, match="at least one batch"):
        m_sharpness(network(), cross_entropy, [])
