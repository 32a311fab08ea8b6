"""Derived weights, reentrant checkpoints, and gradients in memory of somebody else's."""

from __future__ import annotations

import pytest
import torch
from guarded import CLOSE, data, engine_for, loss_fn, method_for, net, optimizer_for
from problems import parted
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import lowland
from lowland import ESAM, SAM, SAMON, SLSAM
from lowland.core.errors import UsageError
from lowland.methods import METHODS


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# Derived weights


@pytest.mark.parametrize("key", METHODS)
def test_cached_parametrizations_change_nothing(key):
    def trained(cached: bool):
        torch.manual_seed(1)
        model = nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 6)), nn.LayerNorm(6), nn.Linear(6, 3))
        optimizer = optimizer_for(key, model)
        engine = lowland.Engine(method_for(key), model, optimizer, parted(key, loss_fn), total_steps=9)
        for step in range(5):
            optimizer.zero_grad()
            if cached:
                with parametrize.cached():
                    engine.backward(data(step))
            else:
                engine.backward(data(step))
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(trained(True), trained(False), strict=True))


class Block(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.norm, self.inner, self.reentrant = nn.LayerNorm(6), nn.Linear(6, 6), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(lambda t: self.inner(self.norm(t)).tanh(), x, use_reentrant=self.reentrant)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # checkpoint's own, under no_grad
@pytest.mark.parametrize("method", [SAMON(rho=0.5), SLSAM(rho=0.5), ESAM(rho=0.5)], ids=lambda m: m.kind)
def test_reentrant_checkpointing_under_wrt(method):
    def trained(reentrant: bool):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 6), Block(reentrant), Block(reentrant), nn.Linear(6, 3))
        engine = engine_for(model, method)
        found = []
        for step in range(4):
            engine.optimizer.zero_grad()
            engine.backward(data(step))
            found += [None if p.grad is None else p.grad.clone() for p in engine.params]
            engine.optimizer.step()
        return found

    for a, b in zip(trained(True), trained(False), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, **CLOSE)


# Gradients in memory of somebody else's


class Graphed(torch.autograd.Function):
    """As ``torch.cuda.make_graphed_callables``: every backward gives views of the same buffers."""

    @staticmethod
    def forward(ctx, module, x, *params):
        ctx.module = module
        with torch.enable_grad():
            ctx.out = module._eager(x.detach())
        return ctx.out.detach()

    @staticmethod
    def backward(ctx, g):
        m = ctx.module
        grads = torch.autograd.grad(ctx.out, list(m.parameters()), g)
        if not hasattr(m, "_static"):
            object.__setattr__(m, "_static", [torch.empty_like(p) for p in m.parameters()])
        for s, grad in zip(m._static, grads, strict=True):
            s.copy_(grad)
        return None, None, *(s.detach() for s in m._static)


def graphed(m: nn.Module) -> nn.Module:
    m._eager = m.forward
    m.forward = lambda x: Graphed.apply(m, x, *m.parameters())
    return m


@pytest.mark.parametrize("key", METHODS)
def test_static_gradient_buffers_change_nothing(key):
    def trained(wrap):
        model = wrap(net())
        optimizer = optimizer_for(key, model)
        engine = lowland.Engine(method_for(key), model, optimizer, parted(key, loss_fn), total_steps=9)
        for step in range(8):
            optimizer.zero_grad()
            engine.backward(data(2 * step))
            engine.backward(data(2 * step + 1))  # accumulates
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    for a, b in zip(trained(graphed), trained(lambda m: m), strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


class Hidden(nn.Module):
    """Static buffers that no attribute tells of: the engine sees it at the second pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = net()
        self.inside._eager = self.inside.forward

    def forward(self, x: Tensor) -> Tensor:
        return Graphed.apply(self.inside, x, *self.inside.parameters())


def test_hidden_static_buffers_are_refused_once_and_then_right():
    model, twin = Hidden(), net()
    engine, other = engine_for(model, SAM(rho=0.5)), engine_for(twin, SAM(rho=0.5))
    try:
        engine.backward(data())
    except UsageError as error:
        assert "call backward again" in str(error)  # noqa: PT017 - or right at once
        engine.backward(data())
    other.backward(data())
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, **CLOSE)
