"""Other tensors in the places of parameters: also unseen by torch, and where the loss still reaches the old ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowland
from lowland.core.errors import ParameterError
from lowland.engine import owners

LOST = r"must stay those .* no longer the same tensor .* make a new Engine"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Sequential()).double()


def loss_fn(m: Any, x: Tensor) -> Tensor:
    return m(x).square().sum(1)


def trained(model: nn.Module, loss: Callable[..., Any] = loss_fn, steps: int = 3, **options: Any) -> lowland.Engine:
    engine = lowland.Engine(lowland.SAM(), model, torch.optim.SGD(model.parameters(), lr=0.1), loss, **options)
    for _ in range(steps):
        engine.backward(batch())
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    return engine


def batch() -> Tensor:
    return torch.ones(4, 3, dtype=torch.float64)


def written(model: nn.Module) -> None:
    model[0]._parameters["weight"] = nn.Parameter(model[0].weight.detach().clone())


def assigned(model: nn.Module) -> None:
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def exchanged(model: nn.Module) -> None:
    model[2] = nn.Linear(4, 2).double()


def penalized(model: nn.Module) -> Callable[..., Any]:
    """A loss that holds the weights that the model had."""
    weights = list(model.parameters())
    return lambda m, x: loss_fn(m, x) + sum(w.square().sum() for w in weights)


@pytest.mark.parametrize("change", [written, assigned, exchanged])
@pytest.mark.parametrize("options", [{}, {"executor": lowland.Batched()}], ids=["local", "batched"])
@pytest.mark.parametrize("steps", [3, 5])
def test_other_tensors_in_their_places_are_refused(change: Any, options: dict[str, Any], steps: int) -> None:
    model = network()
    engine = trained(model, steps=steps, **options)
    change(model)
    held = [p.detach().clone() for p in engine.params]
    with pytest.raises(ParameterError, match=LOST):
        engine.backward(batch())
    assert engine.step == steps
    assert all(torch.equal(p, h) and p.grad is None for p, h in zip(engine.params, held, strict=True))


@pytest.mark.parametrize("change", [assigned, exchanged])
def test_also_where_the_loss_still_reaches_the_old_ones(change: Any) -> None:
    model = network()
    engine = trained(model, penalized(model))
    change(model)
    with pytest.raises(ParameterError, match=LOST):
        engine.backward(batch())


@pytest.mark.parametrize("place", [lambda model: model, lambda model: model[3]], ids=["beside", "elsewhere"])
def test_new_parameters_are_refused_at_once(place: Any) -> None:
    model = network()
    engine = trained(model)
    place(model).append(nn.Linear(2, 2).double())
    with pytest.raises(ParameterError, match=r"\.weight, .*\.bias are new"):
        engine.backward(batch())


def test_a_model_is_walked_through_only_where_something_was_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    engine = trained(model)
    walks: list[int] = []
    real = engine.parameters._check_model
    monkeypatch.setattr(engine.parameters, "_check_model", lambda sharded: (walks.append(engine.step), real(sharded)))
    for i in range(3, 12):
        if i == 10:
            nn.Linear(2, 2)  # anywhere
        engine.backward(batch())
    assert walks == [4, 8, 10]


def test_models_that_make_modules_in_forward_are_trained() -> None:
    model = network()
    makes = trained(model, lambda m, x: (nn.Sequential(nn.Identity()), loss_fn(m, x))[1], steps=6)
    plain = trained(network(), steps=6)
    assert all(torch.equal(p, q) for p, q in zip(makes.params, plain.params, strict=True))


def test_places_are_compared_by_identity() -> None:
    model = network()
    places = owners.places(model, [n for n, _ in model.named_parameters()])
    assert owners.in_place(places)
    model[1] = nn.Tanh()
    assert not owners.in_place(places)
