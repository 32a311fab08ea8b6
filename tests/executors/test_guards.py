"""What a pass must not meet: refused by name, weights and ``.grad`` as before; or right, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import lowland
from lowland.errors import LossError, ParameterError, UsageError
from lowland.executors.batched import Batched
from lowland.lab.costs import REQUIRED
from lowland.methods import ESAM, METHODS, SAM, SAMON, SLSAM, AsyncSAM, MicroSAM, MomentumSAM, SAMPa, make

CLOSE = {"rtol": 1e-9, "atol": 1e-11}  # float64; SAM adds 1e-12 to the norm


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))


def data(step: int = 0, size: int = 8):
    g = torch.Generator().manual_seed(step)
    return torch.randn(size, 5, generator=g), torch.randint(3, (size,), generator=g), torch.arange(size) + size * step


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def engine_for(model, method, loss=loss_fn, **options):
    return lowland.Engine(method, model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), loss, **options)


SHORT = {"vsam": "vsam:window=6,blocks=2,warmup=1", "looksam": "looksam:k=3"}


def method_for(key: str):
    return make(SHORT.get(key, key), fill=lambda k: {"examples": 400} if k == "ausam" else REQUIRED.get(k, {}))


def optimizer_for(key: str, model):
    if key == "adasam":
        return torch.optim.Adam(model.parameters(), amsgrad=True)
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def refused(engine, batch, kind, match) -> None:
    before = [p.detach().clone() for p in engine.params]
    with pytest.raises(kind, match=match):
        engine.backward(batch)
    assert all(torch.equal(p, b) for p, b in zip(engine.params, before, strict=True))
    assert all(p.grad is None for p in engine.params)
    assert engine.step == 0


# Trainable tensors outside


@pytest.mark.parametrize("executor", [None, Batched], ids=["local", "batched"])
@pytest.mark.parametrize("method", [SAM(rho=0.0), MicroSAM(rho=0.1, m=2), SAMPa(rho=0.1)], ids=lambda m: m.kind)
@pytest.mark.parametrize("outside", ["parameter", "tensor", "head"])
def test_trainable_tensors_outside_are_refused(method, outside, executor):
    torch.manual_seed(0)
    W = nn.Parameter(torch.randn(3, 4)) if outside != "tensor" else torch.randn(3, 4, requires_grad=True)
    head = nn.Linear(3, 4)
    loss = {
        "head": lambda m, b: head(m(b[0])).square().mean(1),
    }.get(outside, lambda m, b: (m(b[0]) @ W).square().mean(1))
    engine = engine_for(net(), method, loss, executor=executor() if executor else None)
    name = r"head\.weight" if outside == "head" else r"shape \(3, 4\)"
    refused(engine, data(), ParameterError, name)
    assert W.grad is None
    assert all(p.grad is None for p in head.parameters())


def test_a_gradient_that_was_there_before_stays():
    W = torch.randn(3, 4, requires_grad=True)
    W.grad = torch.ones(3, 4)
    engine = engine_for(net(), SAM(rho=0.1), lambda m, b: (m(b[0]) @ W).square().mean(1))
    refused(engine, data(), ParameterError, "must be the engine's")
    assert torch.equal(W.grad, torch.ones(3, 4))


def test_a_batch_that_requires_a_gradient_is_refused():
    x, y, i = data()
    refused(engine_for(net(), SAM(rho=0.1)), (x.requires_grad_(), y, i), ParameterError, "detach it")
    assert x.grad is None


@pytest.mark.parametrize("key", ["sam", "micro-sam:m=2", "sampa", "looksam:k=2"])
def test_inputs_that_the_loss_makes_require_a_gradient_are_fine(key):
    def penalized(m, b):
        x = b[0].detach().clone().requires_grad_()
        losses = loss_fn(m, (x, b[1]))
        (g,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
        return losses + g.square().sum(1)

    engine = engine_for(net(), make(key), penalized)
    for step in range(3):
        engine.backward(data(step))
        assert all(p.grad is not None for p in engine.params)


def test_passes_and_closures_refuse_them():
    W, model = torch.randn(3, 4, requires_grad=True), net()
    engine = engine_for(model, SAM(rho=0.1), None)
    with pytest.raises(ParameterError, match=r"shape \(3, 4\)"):  # noqa: PT012
        for p in engine.passes(data()):
            with p:
                p.backward((model(p.batch[0]) @ W).square().mean(1))
    assert W.grad is None
    head = nn.Linear(3, 4)
    optimizer = lowland.ClosureOptimizer(engine_for(model, SAM(rho=0.1), None))

    def closure():
        optimizer.zero_grad()
        loss = head(model(data()[0])).square().mean()
        loss.backward()
        return loss

    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ParameterError, match="must be the engine's"):
        optimizer.step(closure)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


# Weights that move


@pytest.mark.parametrize("method", [SAM(rho=0.5), SAMPa(rho=0.5), MicroSAM(rho=0.5, m=2)], ids=lambda m: m.kind)
def test_an_optimizer_fused_into_backward_is_refused(method):
    model = net()
    engine = engine_for(model, method)
    fused = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def hook(p):
        fused[p].step()
        p.grad = None

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)
    refused(engine, data(), UsageError, "fused into backward")


def embedded(max_norm: float | None) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 3, max_norm=max_norm), nn.Linear(3, 3))
    with torch.no_grad():
        model[0].weight[1] = 2.9 * torch.tensor([1.0, 0.0, 0.0])
    return model


WORDS = torch.tensor([1, 2, 3, 1]), torch.tensor([0, 1, 2, 0])


def test_sam_visits_what_max_norm_writes_as_by_hand():
    model, twin = embedded(1.0), embedded(1.0)
    engine = lowland.Engine(SAM(rho=0.3), model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn)
    engine.backward(WORDS)
    params = list(twin.parameters())
    first = torch.autograd.grad(loss_fn(twin, WORDS).mean(), params)
    kept = [p.detach().clone() for p in params]  # with the row renormalized
    norm = torch.cat([g.flatten() for g in first]).norm()
    with torch.no_grad():
        for p, g in zip(params, first, strict=True):
            p += 0.3 * g / norm
    second = torch.autograd.grad(loss_fn(twin, WORDS).mean(), params)
    for p, k, g in zip(model.parameters(), kept, second, strict=True):
        torch.testing.assert_close(p.detach(), k, **CLOSE)
        torch.testing.assert_close(p.grad, g, **CLOSE)
    assert float(model[0].weight[1].detach().norm()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("method", [SAMPa(rho=0.0), MomentumSAM(rho=0.0), AsyncSAM(rho=0.0)], ids=lambda m: m.kind)
def test_methods_whose_reporting_pass_is_displaced_refuse_max_norm(method):
    model = embedded(1.0)
    engine = lowland.Engine(method, model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), loss_fn)
    try:
        for _ in range(3):
            engine.backward(WORDS)
            engine.optimizer.step()
            with torch.no_grad():
                model[0].weight[1] *= 3
    except UsageError as error:
        assert "0.weight" in str(error)  # noqa: PT017 - at the first step or the first displaced one
    else:
        pytest.fail("not refused")


# Derived weights


@pytest.mark.parametrize("key", METHODS)
def test_cached_parametrizations_change_nothing(key):
    def trained(cached: bool):
        torch.manual_seed(1)
        model = nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 6)), nn.LayerNorm(6), nn.Linear(6, 3))
        optimizer = optimizer_for(key, model)
        engine = lowland.Engine(method_for(key), model, optimizer, loss_fn)
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
        engine = lowland.Engine(method_for(key), model, optimizer, loss_fn)
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


def test_a_loss_that_calls_backward_is_refused():
    def backwards(m, b):
        loss = loss_fn(m, b).mean()
        loss.backward(retain_graph=True)
        return loss

    refused(engine_for(net(), SAM(rho=0.1), backwards), data(), LossError, r"leave loss\.backward\(\) out")


def test_per_example_gradients_are_refused():
    model = net()
    for p in model.parameters():
        p.grad_sample = None
    with pytest.raises(ParameterError, match="grad_sample"):
        engine_for(model, SAM(rho=0.1)).backward(data())


def test_batched_refuses_tensors_that_a_loss_binds_anew():
    model, kept = net(), nn.Module()
    kept.center = torch.zeros(3)

    def loss(m, b):
        losses = loss_fn(m, b)
        kept.center = kept.center + losses.mean()
        return losses

    engine = engine_for(model, MicroSAM(rho=0.1, m=2), loss, executor=Batched())
    refused(engine, data(), UsageError, "must not write tensors under Batched")
    assert torch.equal(kept.center, torch.zeros(3))
