"""Several losses in one pass, counts in tensors, and gradients that somebody takes away or computes too early."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from branches import of_a_cpu
from hand import close, linear, sam_gradient, sgd, square
from torch import Tensor, nn

import lowland
from lowland.core.errors import LossError, LowlandError

RHO = 0.5
X = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_two_losses_with_counts_in_one_pass_are_combined() -> None:
    model = linear()
    engine = lowland.Engine(lowland.Plain(), model, sgd(model))
    for p in engine.passes(X):
        with p:
            for part in (X[:2], X[2:]):
                p.backward(lowland.Loss(square(model, part).sum(), len(part)))
    right = torch.autograd.grad(square(model, X).mean(), list(model.parameters()))
    close([p.grad for p in model.parameters()], right)
    assert engine.loss.item() == pytest.approx(square(model, X).mean().item())


@pytest.mark.parametrize("first", [True, False])
def test_a_part_without_a_count_but_with_a_loss(first: bool) -> None:
    mask = torch.tensor([0.0, 0, 1, 1, 1, 1] if first else [1.0, 1, 1, 1, 0, 0], dtype=torch.float64)

    def masked(m: Any, batch: Any) -> lowland.Loss:
        losses = square(m, batch[0])
        return lowland.Loss((losses * batch[1]).sum() + 0.01 * losses.sum(), batch[1].sum())

    model = linear()
    engine = lowland.Engine(lowland.Plain(), model, sgd(model), masked, micro_batch=2)
    engine.backward((X, mask))
    losses = square(model, X)
    right = torch.autograd.grad(((losses * mask).sum() + 0.01 * losses.sum()) / 4, list(model.parameters()))
    close([p.grad for p in model.parameters()], right)


@of_a_cpu  # elsewhere the count is not read
@pytest.mark.parametrize("count", [-6.0, float("nan"), float("inf")])
def test_a_count_in_a_tensor_is_checked_like_a_number(count: float) -> None:
    model = linear()
    loss_fn = lambda m, b: lowland.Loss(square(m, b).sum(), torch.tensor(count))  # noqa: E731
    engine = lowland.Engine(lowland.Plain(), model, sgd(model), loss_fn)
    with pytest.raises(LossError, match="needs a finite count >= 0"):
        engine.backward(X)


def test_a_count_of_numpy_is_a_number() -> None:
    numpy = pytest.importorskip("numpy")
    assert lowland.Loss(torch.ones(()), numpy.int64(6)).count == 6


def taken_by_a_hook(model: nn.Module, engine: lowland.Engine) -> None:
    def take(p: Tensor) -> None:
        p.grad = None

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(take)
    engine.backward(X)


def adopted_without_backward(model: nn.Module, engine: lowland.Engine) -> None:
    for p in engine.passes(X):
        with p:
            p.adopt(square(model, X).mean())


def zeroed(model: nn.Module, engine: lowland.Engine) -> None:
    for p in engine.passes(X):
        with p:
            p.backward(square(model, X))
            engine.optimizer.zero_grad()


@pytest.mark.parametrize("way", [taken_by_a_hook, adopted_without_backward, zeroed])
def test_gradients_that_are_gone_at_the_end_of_a_pass_are_refused(way: Any) -> None:
    model = linear()
    engine = lowland.Engine(lowland.SAM(rho=RHO), model, sgd(model), square)
    with pytest.raises(LowlandError, match=r"must leave its gradient in \.grad"):
        way(model, engine)
    assert engine.step == 0


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_loss_that_zeroes_gradients_of_earlier_parts_is_refused(set_to_none: bool) -> None:
    model = linear()
    optimizer = sgd(model)

    def adversarial(m: Any, batch: Tensor) -> Tensor:
        z = batch.clone().requires_grad_()
        square(m, z).mean().backward()
        optimizer.zero_grad(set_to_none=set_to_none)
        return square(m, batch + 0.1 * z.grad.sign())

    engine = lowland.Engine(lowland.SAM(rho=RHO), model, optimizer, adversarial, micro_batch=2)
    with pytest.raises(LossError, match=r"has changed \.grad|a gradient was there before the engine's backward"):
        engine.backward(X)


def twice(engine: lowland.Engine) -> None:
    for _ in range(2):
        engine.backward(X)


def test_a_value_from_before_the_pass_is_refused_where_weights_have_moved() -> None:
    model = linear()
    held = torch.cat([p.flatten() for p in model.parameters()])  # a sum keeps no tensors, so backward may run again
    for method in (lowland.SAM(rho=RHO), lowland.SAMPa(), lowland.LookSAM(k=2)):
        engine = lowland.Engine(method, model, sgd(model), lambda m, b: square(m, b) + held.sum())
        with pytest.raises(LossError, match=r"before the pass \(CatBackward0\).*keep no outputs"):
            twice(engine)
    lowland.Engine(lowland.Plain(), model, sgd(model), lambda m, b: square(m, b) + held.sum()).backward(X)


def test_a_view_that_was_made_before_the_pass_moves_with_its_weight() -> None:
    model, other = linear(), linear()
    view = model.weight.view(-1)[1:].unsqueeze(0)
    engine = lowland.Engine(lowland.SAM(rho=RHO), model, sgd(model), lambda m, b: square(m, b) + view.square().sum())
    engine.backward(X)
    right = sam_gradient(
        list(other.parameters()), lambda: square(other, X).mean() + other.weight.view(-1)[1:].square().sum(), RHO
    )
    close([p.grad for p in model.parameters()], right)
