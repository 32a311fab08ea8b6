"""What a step may meet: every kind of docs/surroundings.md, with its right value by hand in float64, or its refusal."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from conformance import ALL, engine_of, method_of, model_for
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.utils.checkpoint import checkpoint

import lowland
from lowland.errors import ArgumentError, ParameterError, UsageError


@pytest.fixture(autouse=True)
def double() -> Any:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr)


def square(model: Any, batch: Any) -> Tensor:
    return model(batch).square().mean(1)


def grads(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def close(found: Any, expected: Any, atol: float = 1e-12) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def norm(v: list[Tensor]) -> Tensor:
    return torch.stack([t.square().sum() for t in v]).sum().sqrt() + 1e-12


# Buffers


def spectral(kind: Any) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(kind(nn.Linear(5, 6)), nn.Tanh(), kind(nn.Linear(6, 1)))


@pytest.mark.parametrize("kind", [parametrizations.spectral_norm, old_spectral_norm])
@pytest.mark.parametrize("method", [lowland.SAM(rho=0), lowland.LookSAM(rho=0, k=2), lowland.MomentumSAM(rho=0)])
def test_spectral_norm_trains_as_the_base_does(kind: Any, method: Any) -> None:
    x = torch.randn(8, 5)
    ours, base = spectral(kind), spectral(kind)
    a = torch.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9)
    b = torch.optim.SGD(base.parameters(), lr=0.1, momentum=0.9)
    engine = lowland.Engine(method, ours, a, square)
    for _ in range(5):
        engine.backward(x)
        square(base, x).mean().backward()
        for optimizer in (a, b):
            optimizer.step()
            optimizer.zero_grad()
    close(ours.state_dict().values(), base.state_dict().values())


@pytest.mark.parametrize("text", [t for t in ALL if not t.startswith(("sam-on", "bisam", "micro-sam"))])
def test_buffers_are_written_once_per_step(text: str) -> None:
    class Queue(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model_for(text)
            self.register_buffer("queue", torch.zeros(12, 5))
            self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
            self.rebound = torch.zeros(())

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                place = int(self.pointer)
                self.queue[[i % 12 for i in range(place, place + 1)]] = x[:1]
                self.pointer += 1
            self.rebound = self.rebound + 1
            return self.inner(x)

    net = Queue()
    kinds: dict[str, Any] = {"amsgrad": True}
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, **kinds) if text == "adasam" else None
    engine = engine_of(text, net, base=lambda m: optimizer or torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9))
    from problems import batch

    for step in range(4):
        engine.backward(batch(step))
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    assert int(net.pointer) == 4
    assert float(net.rebound) == 4


class Criterion(nn.Module):
    """Group weights that every call moves."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, outputs: Tensor) -> Tensor:
        losses = outputs.square().mean(1) * self.scale.to(outputs.dtype).clone()
        self.scale.mul_(0.9)
        return losses

    def by_model(self, model: Any, batch: Any) -> Tensor:
        return self(model(batch))


CRITERION = Criterion()


def through_a_global(model: Any, batch: Any) -> Tensor:
    return CRITERION(model(batch))


def ways(criterion: Criterion) -> dict[str, Any]:
    class Callable:
        def __init__(self) -> None:
            self.criterion = criterion

        def __call__(self, model: Any, batch: Any) -> Tensor:
            return self.criterion(model(batch))

    return {
        "closure": lambda model, batch: criterion(model(batch)),
        "bound": criterion.by_model,
        "partial": functools.partial(lambda c, model, batch: c(model(batch)), criterion),
        "object": Callable(),
        "default": lambda model, batch, c=criterion: c(model(batch)),
    }


@pytest.mark.parametrize("way", [*ways(CRITERION), "global"])
def test_a_criterion_s_buffers_are_written_once_per_step(way: str) -> None:
    CRITERION.scale.fill_(1)
    criterion = CRITERION if way == "global" else Criterion()
    loss = through_a_global if way == "global" else ways(criterion)[way]
    net, x = nn.Linear(3, 2), torch.randn(4, 3)
    engine = lowland.Engine(lowland.SAM(), net, sgd(net), loss)
    for _ in range(5):
        engine.backward(x)
    assert float(criterion.scale) == pytest.approx(0.9**5, rel=1e-6)  # the global one is in single precision


def test_the_displaced_pass_starts_where_the_step_began() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, 2.0]))
            self.register_buffer("scale", torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            self.scale = self.scale + 1
            return (x * self.w).square() * self.scale

    net, x = Scaled(), torch.tensor([[1.0, 0.5]])
    lowland.Engine(lowland.SAM(rho=0.1), net, sgd(net), lambda m, b: m(b).sum(1)).backward(x)
    g = 2 * 2 * x[0] ** 2 * torch.tensor([1.0, 2.0])
    w = torch.tensor([1.0, 2.0]) + 0.1 * g / g.norm()
    close([net.w.grad], [2 * 2 * x[0] ** 2 * w])  # the scale is 2 in both passes
    assert float(net.scale) == 2


def test_displaced_is_true_where_a_pass_leaves_no_trace() -> None:
    seen: list[bool] = []

    def loss(model: Any, batch: Any) -> Tensor:
        seen.append(lowland.displaced())
        return square(model, batch)

    for method, expected in ((lowland.SAM(), [False, True]), (lowland.SAMPa(), [True, False])):
        net = nn.Linear(3, 2)
        engine = lowland.Engine(method, net, sgd(net), loss)
        seen.clear()
        engine.backward(torch.randn(4, 3))
        assert seen == expected
    assert not lowland.displaced()


def test_a_large_buffer_written_late_is_refused_once() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 2)
            self.register_buffer("large", torch.zeros(70_000))
            self.write = False

        def forward(self, x: Tensor) -> Tensor:
            if self.write:
                self.large.add_(1)
            return self.inner(x)

    net, x = Late(), torch.randn(4, 3)
    engine = lowland.Engine(lowland.SAMPa(), net, sgd(net), square)
    engine.backward(x)
    net.write = True
    with pytest.raises(UsageError, match="large was written for the first time after the first step"):
        engine.backward(x)
    assert engine.step == 1
    before = net.large.clone()
    engine.backward(x)
    close([net.large], [before + 1])


# Tensors and weights


def test_parameters_outside_the_engine_are_refused_by_name() -> None:
    net, head, x = nn.Linear(3, 5), nn.Linear(5, 2), torch.randn(4, 3)
    engine = lowland.Engine(lowland.SAM(), net, sgd(net), lambda m, b: head(m(b)).square().mean(1))
    with pytest.raises(ParameterError, match=r"head\.weight, head\.bias are not.*Engine\(method, \[model, head\]"):
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

    from problems import batch

    def trained(cached: bool) -> list[Tensor]:
        model = net()
        kind = torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True) if text == "adasam" else None
        engine = engine_of(text, model, base=lambda m: kind or torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9))
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

    from problems import batch

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
    from problems import batch

    def trained(wrap: Any) -> list[Tensor]:
        model = wrap(model_for(text))
        kind = torch.optim.Adam(model.parameters(), lr=0.01, amsgrad=True) if text == "adasam" else None
        engine = engine_of(text, model, base=lambda m: kind or torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9))
        for step in range(6):
            engine.backward(batch(2 * step))
            engine.backward(batch(2 * step + 1))  # accumulates
            engine.optimizer.step()
            engine.optimizer.zero_grad()
        return [p.detach() for p in model.parameters()]

    close(trained(captured), trained(lambda m: m))


def test_static_buffers_that_nobody_has_announced_are_refused_once() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 3))
            self.kept = [torch.zeros(2, 3)]

        def forward(self, x: Tensor) -> Tensor:
            return x @ Static.apply(self.weight, self.kept[0]).T

    net, x = Hidden(), torch.randn(4, 3)
    engine = lowland.Engine(lowland.GSAM(), net, sgd(net), square)
    with pytest.raises(UsageError, match=r"backward has overwritten those of an earlier pass.*call backward again"):
        engine.backward(x)
    assert engine.step == 0
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


# Batches


def test_batches_of_more_than_tensors() -> None:
    batch = {"x": torch.randn(4, 3), "y": torch.randn(4), "name": ["a", "b", "c", "d"], "k": 2.0}

    def loss(model: Any, b: Any) -> Tensor:
        assert len(b["name"]) == len(b["x"])
        return (model(b["x"])[:, 0] * b["k"] - b["y"]).square()

    def gradient(net: nn.Module, at: Any = None) -> list[Tensor]:
        weights = {n: p.detach() + (0 if at is None else at[n]) for n, p in net.named_parameters()}
        weights = {n: w.requires_grad_() for n, w in weights.items()}
        out = torch.func.functional_call(net, weights, (batch["x"],))[:, 0]
        return list(torch.autograd.grad((out * 2.0 - batch["y"]).square().mean(), list(weights.values())))

    for method in (lowland.SAM(rho=0.1), lowland.MicroSAM(m=2), lowland.KSAM(), lowland.ESAM(), lowland.SAMPa()):
        torch.manual_seed(0)
        net = nn.Linear(3, 1)
        engine = lowland.Engine(method, net, sgd(net), loss)
        engine.backward(batch)
        engine.load_state_dict(engine.state_dict())
        if isinstance(method, lowland.SAM):
            g = gradient(net)
            close(grads(net), gradient(net, {n: 0.1 * t / norm(g) for n, t in zip(("weight", "bias"), g, strict=True)}))


class Graph:
    """Nodes (7, 3), edges (2, 10), targets (2, 1): two graphs in one batch."""

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(5)
        self.nodes = torch.randn(7, 3, generator=g)
        self.edges = torch.randint(7, (2, 10), generator=g)
        self.targets = torch.randn(2, 1, generator=g)
        self.of = torch.tensor([0, 0, 0, 1, 1, 1, 1])


def on_graphs(model: Any, b: Any) -> Tensor:
    passed = b.nodes.index_add(0, b.edges[1], b.nodes[b.edges[0]])
    pooled = torch.zeros(2, 3).index_add(0, b.of, passed)
    return (model(pooled) - b.targets).square().mean(1)


@pytest.mark.parametrize("text", [t for t in ALL if not t.startswith(("sam-on", "bisam", "adasam"))])
def test_graphs_go_to_methods_that_do_not_cut(text: str) -> None:
    net, graph = nn.Linear(3, 1), Graph()
    base = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    engine = lowland.Engine(method_of(text), net, base, on_graphs)
    if any(key in text for key in ("micro-sam", "k-sam", "ausam", "esam", "async-sam")):
        with pytest.raises(lowland.errors.BatchError):
            engine.backward(graph)
    else:
        engine.backward(graph)
        assert engine.step == 1


def test_one_own_cutter() -> None:
    class Pairs:
        def size(self, batch: Any) -> int:
            return len(batch) // 2

        def take(self, batch: Any, index: Any) -> Any:
            places = range(self.size(batch))[index] if isinstance(index, slice) else index.tolist()
            return [t for i in places for t in batch[2 * i : 2 * i + 2]]

    def loss(model: Any, b: Any) -> Tensor:
        return torch.stack([(model(x) - y).square().mean() for x, y in zip(b[::2], b[1::2], strict=True)])

    ragged = [t for n in (3, 1, 2, 5) for t in (torch.randn(n, 3), torch.randn(n, 2))]
    for method in (lowland.MicroSAM(m=2), lowland.KSAM(k=2), lowland.SAM()):
        net = nn.Linear(3, 2)
        engine = lowland.Engine(method, net, sgd(net), loss, cut=Pairs(), micro_batch=1)
        engine.backward(ragged)
        assert engine.step == 1
    with pytest.raises(ArgumentError, match=r"cut must have the methods size\(batch\) and take"):
        lowland.Engine(lowland.SAM(), net, sgd(net), loss, cut=3)


# Passes of one's own


def test_adopt_refuses_another_batch_than_the_pass_s() -> None:
    net, x = nn.Linear(3, 2), torch.randn(4, 3)
    engine = lowland.Engine(lowland.MicroSAM(m=2), net, sgd(net))
    with pytest.raises(UsageError, match=r"run the model on p\.batch and say so"):  # noqa: PT012
        for p in engine.passes(x):
            with p:
                loss = square(net, x).mean()
                loss.backward()
                p.adopt(loss)
    engine = lowland.Engine(lowland.SAMPa(), net, sgd(net))
    reports = []
    for _ in range(2):
        for p in engine.passes(x):
            with p:
                loss = square(net, p.batch).mean()
                loss.backward()
                p.adopt(loss, batch=p.batch)
            reports.append(p.reports)
    assert reports == [False, True] * 2
    torch.testing.assert_close(engine.loss, loss.detach(), rtol=0, atol=0)
