"""Tensors outside the engine, weights that move, caches, checkpoints, and gradients that somebody overwrites."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conformance import ALL, base_for, engine_of, loss_for, method_of, model_for
from hand import close, grads, sgd, square
from problems import batch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import lowland
from lowland.core.errors import ParameterError, UsageError


def test_parameters_outside_the_engine_are_refused_by_name() -> None:
    net, head, x = nn.Linear(3, 5), nn.Linear(5, 2), torch.randn(4, 3)
    engine = lowland.Engine(lowland.SAM(), net, sgd(net), lambda m, b: head(m(b)).square().mean(1))
    with pytest.raises(ParameterError, match=r"head\.bias, head\.weight are not.*Engine\(method, \[model, head\]"):
        engine.backward(x)
    assert head.weight.grad is None
    assert engine.step == 0
    both = torch.optim.SGD([*net.parameters(), *head.parameters()], lr=0.1)
    engine = lowland.Engine(lowland.SAM(rho=0), [net, head], both, lambda m, b: m[1](m[0](b)).square().mean(1))
    engine.backward(x)
    found = grads(net) + grads(head)
    expected = torch.autograd.grad(head(net(x)).square().mean(), [*net.parameters(), *head.parameters()])
    close(found, expected)


@pytest.mark.parametrize("executor", [None, lowland.Batched()])
def test_plain_tensors_outside_the_engine_are_refused(executor: Any) -> None:
    net, outside, x = nn.Linear(3, 3), torch.randn(3, 5, requires_grad=True), torch.randn(4, 3)
    engine = lowland.Engine(
        lowland.SAMPa(), net, sgd(net), lambda m, b: (m(b) @ outside).square().mean(1), executor=executor
    )
    with pytest.raises(ParameterError, match=r"a tensor of shape \(3, 5\) is not"):
        engine.backward(x)
    assert outside.grad is None


def test_inputs_that_the_loss_lets_require_a_gradient_are_no_strangers() -> None:
    net = nn.Linear(3, 2)

    def penalized(model: Any, batch: Any) -> Tensor:
        x = batch.detach().requires_grad_()
        (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return g.square().sum(1) + model(x).square().mean(1)

    engine = lowland.Engine(lowland.SAM(), net, sgd(net), penalized)
    engine.backward(torch.randn(4, 3))
    assert engine.step == 1


@pytest.mark.parametrize("text", ["sam", "sampa", "momentum-sam:rho=0.1", "micro-sam"])
def test_an_optimizer_fused_into_backward_is_refused(text: str) -> None:
    net, x = nn.Linear(3, 2), torch.randn(4, 3)
    fused = {p: torch.optim.SGD([p], lr=0.1) for p in net.parameters()}
    base = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)

    def step(p: Tensor) -> None:
        fused[p].step()
        p.grad = None

    for p in net.parameters():
        p.register_post_accumulate_grad_hook(step)
    before = [p.detach().clone() for p in net.parameters()]
    engine = lowland.Engine(method_of(text), net, base, square)
    with pytest.raises(UsageError, match=r"weights must stay where they are while backward runs, but (weight|bias)"):
        engine.backward(x)
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True))


def embedding() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(6, 3, max_norm=1.0), nn.Linear(3, 1))
    with torch.no_grad():
        net[0].weight[2] *= 3 / net[0].weight[2].norm()
    return net


def test_a_forward_that_writes_weights() -> None:
    net, x = embedding(), torch.tensor([1, 2])
    engine = lowland.Engine(lowland.SAM(rho=0), net, sgd(net), square)
    engine.backward(x)
    assert float(net[0].weight[2].detach().norm()) == pytest.approx(1.0, abs=1e-6)  # as the base run
    for method in (lowland.SAMPa(), lowland.MomentumSAM(rho=0), lowland.AsyncSAM()):
        net = embedding()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        engine = lowland.Engine(method, net, optimizer, square)
        with pytest.raises(UsageError, match=r"forward must not write weights .* but writes 0\.weight"):  # noqa: PT012
            for _ in range(2):
                with torch.no_grad():
                    net[0].weight[2] *= 3
                engine.backward(x)


@pytest.mark.parametrize("text", [t for t in ALL if not t.startswith("sam-on")])
def test_caches_of_derived_weights(text: str) -> None:
    def net() -> nn.Module:
        made = model_for(text)
        parametrizations.weight_norm(made.first)
        return made

    def trained(cached: bool) -> list[Tensor]:
        model = net()
        kind = torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True) if text == "adasam" else None
        engine = engine_of(text, model, base=lambda m: kind or base_for(text)(m, weight_decay=0.0))
        for step in range(3):
            if cached:
                with parametrize.cached():
                    engine.backward(batch(step))
            else:
                engine.backward(batch(step))
            engine.optimizer.step()
            engine.optimizer.zero_grad()
        return [p.detach() for p in model.parameters()]

    close(trained(True), trained(False), 0.0)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of ESAM's pass without a gradient
@pytest.mark.parametrize("text", ["sam-on:rho=0.5", "sl-sam:s=0.4", "esam"])
def test_reentrant_checkpoints_under_methods_that_choose_tensors(text: str) -> None:
    class Checkpointed(nn.Module):
        def __init__(self, reentrant: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last, self.reentrant = nn.Linear(5, 8), nn.Linear(8, 3), reentrant
            self.block = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            return self.last(checkpoint(self.block, self.first(x), use_reentrant=self.reentrant))

    def trained(reentrant: bool) -> list[Tensor]:
        engine = engine_of(text, Checkpointed(reentrant))
        for step in range(4):
            engine.backward(batch(step))
            engine.optimizer.step()
            engine.optimizer.zero_grad()
        return [p.detach() for p in engine.params]

    close(trained(True), trained(False))


class Static(torch.autograd.Function):
    """Gives its gradient in a buffer that the next backward overwrites, as a captured CUDA graph does."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, buffer: Tensor) -> Tensor:
        ctx.buffer = buffer
        return weight.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.buffer.copy_(grad)
        return ctx.buffer.detach(), None


def captured(model: nn.Module) -> nn.Module:
    """The model's first layer as ``torch.cuda.make_graphed_callables`` leaves it: with a forward of the instance."""
    layer = model.first
    buffers = {name: torch.zeros_like(p) for name, p in layer.named_parameters()}

    def forward(x: Tensor) -> Tensor:
        weight, bias = (Static.apply(getattr(layer, n), buffers[n]) for n in ("weight", "bias"))
        return nn.functional.linear(x, weight, bias)

    layer.forward = forward
    return model


@pytest.mark.parametrize("text", ALL)
def test_gradients_in_static_buffers_are_copied(text: str) -> None:

    def trained(wrap: Any) -> list[Tensor]:
        model = wrap(model_for(text))
        kind = torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True) if text == "adasam" else None
        engine = engine_of(text, model, base=lambda m: kind or base_for(text)(m, weight_decay=0.0))
        for step in range(6):
            engine.backward(batch(2 * step))
            engine.backward(batch(2 * step + 1))  # accumulates
            engine.optimizer.step()
            engine.optimizer.zero_grad()
        return [p.detach() for p in model.parameters()]

    close(trained(captured), trained(lambda m: m))


def test_static_buffers_that_nobody_has_announced_are_found() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 3))
            self.kept = [torch.zeros(2, 3)]

        def forward(self, x: Tensor) -> Tensor:
            return x @ Static.apply(self.weight, self.kept[0]).T

    net, x = Hidden(), torch.randn(4, 3)
    engine = lowland.Engine(lowland.GSAM(), net, sgd(net), square)
    engine.backward(x)
    other = nn.Linear(3, 2, bias=False)
    other.weight = nn.Parameter(net.weight.detach().clone())
    plain = lowland.Engine(lowland.GSAM(), other, sgd(other), square)
    plain.backward(x)
    close([net.weight.grad], [other.weight.grad])


def test_per_example_gradients_are_refused() -> None:
    net = nn.Linear(3, 2)
    net.weight.grad_sample = None
    with pytest.raises(ParameterError, match="weight has a grad_sample"):
        lowland.Engine(lowland.SAM(), net, sgd(net), square)


@pytest.mark.parametrize("at", [1, 2, 5])
@pytest.mark.parametrize("text", ALL)
def test_a_weight_that_is_frozen_between_steps_stays_and_nothing_is_refused(text: str, at: int) -> None:
    """The method goes on to displace it by zero, which is no write of the forward."""
    model = model_for(text)
    frozen = next(model.parameters())
    engine = engine_of(text, model)
    for step in range(7):
        if step == at:
            frozen.requires_grad_(False)
            before = frozen.detach().clone()
        if step == 6:
            model.register_buffer("epoch", torch.zeros(()))
        engine.backward(batch(step))
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    assert torch.equal(frozen, before)


def test_a_step_after_a_weight_is_frozen_is_that_of_an_engine_that_knew_it_frozen() -> None:
    text, found = "sam", []
    for late in (True, False):
        model = model_for(text)
        engine = engine_of(text, model)
        engine.backward(batch(0))
        engine.optimizer.step()
        engine.optimizer.zero_grad()
        next(model.parameters()).requires_grad_(False)
        if not late:
            trained = [p for p in model.parameters() if p.requires_grad]
            engine = lowland.Engine(method_of(text), model, torch.optim.SGD(trained, lr=0.1), loss_for(text))
        engine.backward(batch(1))
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    close(*found)
