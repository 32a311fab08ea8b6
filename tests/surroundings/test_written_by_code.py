"""What forward, hooks and loss functions draw from, differentiate and write beside tensors in attributes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hand import close, linear, norm, sam_gradient, sgd, square
from torch import Tensor, nn
from torch.nn import functional

import lowland
from lowland.core.errors import UsageError

RHO = 0.5
X = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


GLOBAL = iter([X, X, X, X])
loader = iter([X])  # never drawn from: only an attribute has its name


def of_a_closure() -> Any:
    drawn = iter([X, X, X, X])
    return linear(), lambda m, b: square(m, b) + square(m, next(drawn))


def of_a_global() -> Any:
    return linear(), lambda m, b: square(m, b) + square(m, next(GLOBAL))


def of_a_generator() -> Any:
    drawn = (t for t in [X, X, X, X])

    def inner(m: Any) -> Tensor:
        return square(m, next(drawn))

    return linear(), lambda m, b: square(m, b) + inner(m)


def of_a_loader() -> Any:
    drawn = iter(torch.utils.data.DataLoader(list(X), batch_size=6))
    return linear(), lambda m, b: square(m, b) + square(m, next(drawn))


class Cycling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scales = linear(), itertools.cycle([1.0, 2.0])

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * next(self.scales)


DRAWN = [of_a_closure, of_a_global, of_a_generator, of_a_loader, lambda: (Cycling(), square)]


@pytest.mark.parametrize("made", DRAWN, ids=["closure", "global", "generator", "loader", "module"])
@pytest.mark.parametrize("method", [lowland.SAM(rho=RHO), lowland.SAMPa()], ids=lambda m: m.kind)
def test_an_iterator_that_every_pass_would_advance_is_refused(made: Any, method: lowland.Method) -> None:
    model, loss_fn = made()
    engine = lowland.Engine(method, model, sgd(model), loss_fn)
    with pytest.raises(UsageError, match=r"an iterator, which every pass would advance; draw in the training loop"):
        engine.backward(X)


@pytest.mark.parametrize("made", DRAWN[:-1])
def test_one_pass_may_draw(made: Any) -> None:
    global GLOBAL
    GLOBAL = iter([X, X, X, X])
    model, loss_fn = made()
    lowland.Engine(lowland.Plain(), model, sgd(model), loss_fn).backward(X)
    right = torch.autograd.grad(2 * square(model, X).mean(), list(model.parameters()))
    close([p.grad for p in model.parameters()], right)


def test_an_attribute_with_the_name_of_an_iterator_is_none() -> None:
    class Holder:
        loader = 2.0

    holder, model = Holder(), linear()
    engine = lowland.Engine(lowland.SAM(rho=RHO), model, sgd(model), lambda m, b: square(m, b) * holder.loader)
    engine.backward(X)
    close(
        [p.grad for p in model.parameters()],
        sam_gradient(list(model.parameters()), lambda: 2 * square(model, X).mean(), RHO),
    )


def test_a_closure_that_draws_is_refused() -> None:
    model, drawn = linear(), iter([X, X, X, X])
    optimizer = lowland.ClosureOptimizer(lowland.Engine(lowland.SAM(rho=RHO), model, sgd(model)))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = square(model, next(drawn)).mean()
        loss.backward()
        return loss

    with pytest.raises(UsageError, match="draws from drawn, an iterator"):
        optimizer.step(closure)


def penalty(model: nn.Module, batch: Tensor) -> Tensor:
    """A loss with the squared gradient of the tensors that require one."""
    losses = square(model, batch)
    wanted = [p for p in model.parameters() if p.requires_grad]
    return losses + 0.5 * sum(g.square().sum() for g in torch.autograd.grad(losses.mean(), wanted, create_graph=True))


@pytest.mark.parametrize(
    "method", [lowland.SAMON(rho=RHO), lowland.ESAM(rho=RHO), lowland.SLSAM(rho=RHO, s=0.5)], ids=lambda m: m.kind
)
def test_a_loss_that_differentiates_itself_is_the_same_in_every_step(method: lowland.Method) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1)).double()
    engine = lowland.Engine(method, model, sgd(model, lr=0.0), penalty)
    right = penalty(model, X).mean().item()
    for _ in range(7):
        assert engine.backward(X).item() == pytest.approx(right, rel=1e-12)
        engine.optimizer.zero_grad()


def test_the_gradient_of_sam_on_with_a_penalty_by_hand() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1)).double()
    engine = lowland.Engine(lowland.SAMON(rho=RHO), model, sgd(model, lr=0.0), penalty)
    params, norms = list(model.parameters()), list(model[1].parameters())
    first = torch.autograd.grad(penalty(model, X).mean(), norms)
    moves = [RHO * g / norm(list(first)) for g in first]
    with torch.no_grad():
        for p, e in zip(norms, moves, strict=True):
            p.add_(e)
    right = torch.autograd.grad(penalty(model, X).mean(), params)
    with torch.no_grad():
        for p, e in zip(norms, moves, strict=True):
            p.sub_(e)
    for _ in range(6):
        engine.backward(X)
        close([p.grad for p in params], right)
        engine.optimizer.zero_grad()


def test_an_adversary_inside_a_forward_without_gradient() -> None:
    def adversarial(model: Any, batch: Tensor) -> Tensor:
        z = batch.clone().requires_grad_()
        return square(model, batch + 0.1 * torch.autograd.grad(square(model, z).mean(), z)[0].sign())

    model = linear()
    engine = lowland.Engine(lowland.ESAM(rho=RHO, beta=1.0, gamma=1.0), model, sgd(model), adversarial)
    engine.backward(X)
    close(
        [p.grad for p in model.parameters()],
        sam_gradient(list(model.parameters()), lambda: adversarial(model, X).mean(), RHO),
    )


class Stateful(nn.Module):
    """A model whose output depends on what earlier passes have left in a container."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner, self.kind, self.scales = linear(), kind, (1.0, 2.0, 3.0)
        self.cache: Any = {"dict": {"h": None}, "list": [None, None], "numbers": [0], "counts": {"n": 0}}[kind]

    def forward(self, x: Tensor) -> Tensor:
        out, cache = self.inner(x), self.cache
        if self.kind in ("numbers", "counts"):
            key: Any = 0 if self.kind == "numbers" else "n"
            cache[key] += 1
            return out * self.scales[(cache[key] - 1) % 3]
        key = "h" if self.kind == "dict" else 1
        earlier, cache[key] = cache[key], out.detach()
        return out if earlier is None else out + earlier


@pytest.mark.parametrize("kind", ["dict", "list", "numbers", "counts"])
def test_containers_of_none_and_of_a_models_integers_are_state(kind: str) -> None:
    model, other = Stateful(kind), linear()
    engine = lowland.Engine(lowland.SAM(rho=RHO), model, sgd(model, lr=0.0), square)
    scale, earlier = 1.0, torch.zeros(6, 1, dtype=torch.float64)
    for step in range(3):
        engine.backward(X)
        if kind in ("numbers", "counts"):
            scale = step + 1.0
        right = sam_gradient(list(other.parameters()), lambda: ((other(X) + earlier) * scale).square().mean(), RHO)  # noqa: B023
        close([p.grad for p in model.parameters()], right)
        if kind in ("dict", "list"):
            earlier = other(X).detach()
        engine.optimizer.zero_grad()


@pytest.mark.parametrize("trainable", [False, True])
def test_a_parameter_in_a_variable_that_the_loss_writes_is_written_once(trainable: bool) -> None:
    model, other = linear(), linear()
    center = nn.Parameter(torch.zeros(1, dtype=torch.float64), requires_grad=trainable)

    def centered(m: Any, batch: Tensor) -> Tensor:
        out = m(batch)
        with torch.no_grad():
            center.mul_(0.5).add_(out.mean())
        return (out - center.detach()).square().mean(1)

    engine = lowland.Engine(lowland.SAM(rho=RHO), model, sgd(model), centered)
    engine.backward(X)
    right = sam_gradient(list(other.parameters()), lambda: (other(X) - other(X).mean().detach()).square().mean(), RHO)
    close([p.grad for p in model.parameters()], right)
    assert center.item() == pytest.approx(other(X).mean().item())


@pytest.mark.parametrize("kind", [torch.optim.Adam, lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9)])
def test_an_optimizer_with_state_inside_the_loss_is_refused(kind: Any) -> None:
    model, weight = linear(), nn.Parameter(torch.zeros(1, dtype=torch.float64))
    inner = kind([weight], lr=0.1)

    def learned(m: Any, batch: Tensor) -> Tensor:
        losses = square(m, batch)
        if not (guarded and lowland.displaced()):
            inner.zero_grad()
            (weight * losses.detach().mean()).sum().backward()
            inner.step()
        return losses

    guarded = False
    engine = lowland.Engine(lowland.SAM(rho=RHO), model, sgd(model), learned)
    with pytest.raises(UsageError, match=r"steps inside forward or loss_fn.*after engine.backward.*lowland.displaced"):
        engine.backward(X)
    guarded = True
    engine.backward(X)
    guarded, model = False, linear()
    lowland.Engine(lowland.Plain(), model, sgd(model), learned).backward(X)  # one pass is one step


class Functional(nn.Module):
    """Gives the buffers of a BatchNorm to the function, as a module that fuses layers does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.out = linear(4), nn.BatchNorm1d(4).double(), nn.Linear(4, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm
        h = functional.batch_norm(self.inner(x), n.running_mean, n.running_var, n.weight, n.bias, self.training, 0.5)
        return self.out(h)


METHODS = [lowland.SAM(rho=RHO), lowland.SAMPa(), lowland.LookSAM(k=2)]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.kind)
def test_statistics_given_to_a_function_are_updated_once_a_step(method: lowland.Method) -> None:
    torch.manual_seed(0)
    model = Functional()
    twin = Functional()
    twin.load_state_dict(model.state_dict())
    engine = lowland.Engine(method, model, sgd(model, lr=0.0), square)
    for batch in torch.randn(4, 6, 3, dtype=torch.float64):
        twin(batch)
        engine.backward(batch)
        engine.optimizer.zero_grad()
        assert torch.equal(model.norm.running_mean, twin.norm.running_mean)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.kind)
def test_a_loss_that_switches_to_training_updates_statistics_once(method: lowland.Method) -> None:
    def switches(m: nn.Module, batch: Tensor) -> Tensor:
        m.train()
        losses = square(m, batch)
        m.eval()
        return losses

    model = nn.Sequential(linear(4), nn.BatchNorm1d(4).double(), nn.Linear(4, 1).double()).eval()
    engine = lowland.Engine(method, model, sgd(model, lr=0.0), switches)
    for count in (1, 2, 3):
        engine.backward(X)
        engine.optimizer.zero_grad()
        assert model[1].num_batches_tracked == count
        assert model[1].track_running_stats


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("where", ["parameter", "module", "all modules"])
def test_the_state_of_hooks_is_restored(where: str) -> None:
    seen = {"scale": torch.ones((), dtype=torch.float64)}

    def scaled(grad: Tensor) -> Tensor:
        seen["scale"] = 0.5 * seen["scale"] + 0.5 * grad.norm()
        return grad / seen["scale"]

    model, other = linear(), linear()
    if where == "parameter":
        handle = model.weight.register_hook(scaled)
        other.weight.register_hook(scaled)
    elif where == "module":
        handle = model.register_full_backward_pre_hook(lambda _, grads: (scaled(grads[0]),))
        other.register_full_backward_pre_hook(lambda _, grads: (scaled(grads[0]),))
    else:
        handle = nn.modules.module.register_module_forward_hook(lambda m, _, out: out * scaled(out.detach()).mean())
    try:
        lowland.Engine(lowland.SAM(rho=RHO), model, sgd(model), square).backward(X)
        after, right, params = seen["scale"].clone(), [], list(other.parameters())
        first: list[Tensor] = []
        for _ in range(2):
            seen["scale"] = torch.ones((), dtype=torch.float64)
            other.zero_grad()
            square(other, X).mean().backward()
            if not first:
                expected = seen["scale"].clone()
            right = [p.grad.clone() for p in params]
            if not first:
                first = right
                with torch.no_grad():
                    for p, g in zip(params, first, strict=True):
                        p.add_(RHO * g / norm(first))
    finally:
        handle.remove()
    close([p.grad for p in model.parameters()], right)
    close([after], [expected])
