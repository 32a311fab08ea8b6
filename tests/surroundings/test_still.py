"""Weights that move inside forward or backward, and backwards inside backward."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from branches import of_a_cpu
from hand import close, sgd, square
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import lowland
from lowland.core.errors import UsageError
from lowland.methods import make

METHODS = [lowland.SAM(), lowland.SAMPa(), lowland.LookSAM(k=2), lowland.MicroSAM(m=2)]
each = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.kind)


def of_the_tensor(net: nn.Module, kept: list[Any]) -> None:
    for p in net.parameters():
        p.register_hook(lambda g, p=p: p.data.add_(g, alpha=-0.1) * 0 + g)


def of_the_accumulator(net: nn.Module, kept: list[Any]) -> None:
    for p in net.parameters():
        node = p.expand_as(p).grad_fn.next_functions[0][0]
        kept.append(node)

        def step(*_: Any, p: Tensor = p) -> None:
            with torch.no_grad():
                p.sub_(0.1 * p.grad)

        node.register_hook(step)


def past_the_version(net: nn.Module, kept: list[Any]) -> None:
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(lambda p: [p.data.sub_(0.1 * p.grad), None][1])


def of_the_module(net: nn.Module, kept: list[Any]) -> None:
    def step(m: nn.Module, *_: Any) -> None:
        with torch.no_grad():
            m.weight.sub_(0.1)

    net.register_full_backward_hook(step)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@each
@pytest.mark.parametrize("hook", [of_the_tensor, of_the_accumulator, past_the_version, of_the_module])
def test_a_hook_that_steps_inside_backward_is_refused_and_undone(method: Any, hook: Any) -> None:
    net, x, kept = nn.Linear(3, 2), torch.randn(4, 3), []
    hook(net, kept)
    before = [p.detach().clone() for p in net.parameters()]
    engine = lowland.Engine(method, net, sgd(net), square)
    with pytest.raises(UsageError, match=r"weights must stay where they are while backward runs, but (weight|bias)"):
        engine.backward(x)
    close(net.parameters(), before, 0)


@each
@pytest.mark.parametrize(
    "hook",
    [  # a GPU's values are read in steps 0, 1, 2, 4, ... only, because the host waits for them
        pytest.param(of_the_tensor, marks=of_a_cpu),
        of_the_accumulator,
        pytest.param(past_the_version, marks=of_a_cpu),
    ],
)
@pytest.mark.parametrize("door", ["backward", "passes", "adopt"])
def test_a_hook_that_joins_late_is_refused_in_its_first_step(method: Any, hook: Any, door: str) -> None:
    net, x, kept = nn.Linear(3, 2), torch.randn(4, 3), []
    engine = lowland.Engine(method, net, sgd(net), square if door == "backward" else None)
    if door == "adopt" and hook is of_the_accumulator:
        return  # nothing on the parameter tells of it, and the forward may have written the weight

    def step() -> None:
        if door == "backward":
            engine.backward(x)
            return
        for p in engine.passes(x):
            with p:
                loss = square(net, p.batch)
                if door == "passes":
                    p.backward(loss)
                else:
                    loss.mean().backward()
                    p.adopt(lowland.Loss(loss.sum(), len(loss)), batch=p.batch)

    for _ in range(3):
        step()
    hook(net, kept)
    with pytest.raises(UsageError, match="weights must stay where they are while backward runs, but"):
        step()
    assert engine.step == 3


@each
@pytest.mark.parametrize("place", ["loss", "hook", "passes", "closure"])
def test_an_optimizer_that_steps_inside_a_step_is_refused_before_it_moves_weights(method: Any, place: str) -> None:
    net, x = nn.Linear(3, 2), torch.randn(4, 3)
    optimizer, other = sgd(net), torch.optim.Adam(net.parameters())

    def loss(model: Any, batch: Any) -> Tensor:
        if place == "loss":
            other.step()
        return square(model, batch)

    engine = lowland.Engine(method, net, optimizer, None if place in ("passes", "closure") else loss)

    def step() -> None:
        if place == "passes":
            for p in engine.passes(x):
                with p:
                    p.backward(square(net, p.batch))
                    other.step()
        elif place == "closure":
            closed = lowland.ClosureOptimizer(engine)
            closed.step(
                lambda: [closed.zero_grad(), (found := square(net, x).mean()).backward(), other.step(), found][-1]
            )
        else:
            engine.backward(x)

    if place == "closure" and method.needs_batch:
        return
    if place == "hook":
        net.weight.register_post_accumulate_grad_hook(lambda p: other.step())
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(UsageError, match=r"but weight would be stepped by a Adam before the step of the engine"):
        step()
    close(net.parameters(), before, 0)
    other.step()  # after the step it may


class Clamped(nn.Module):
    def __init__(self, past: bool) -> None:
        super().__init__()
        self.w, self.past = nn.Parameter(torch.full((2, 3), 0.5)), past

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            (self.w.data if self.past else self.w).clamp_(-0.1, 0.1)
        return x @ self.w.T


@each
@pytest.mark.parametrize("past", [pytest.param(True, marks=of_a_cpu), False], ids=["data", "version"])
def test_a_forward_that_clamps_weights(method: Any, past: bool) -> None:
    net, x = Clamped(past), torch.randn(4, 3)
    engine = lowland.Engine(method, net, sgd(net), square)
    for step in range(2):
        with torch.no_grad():
            net.w.fill_(0.5)
        if method.kind == "SAMPa" and step == 1:
            with pytest.raises(UsageError, match=r"forward must not write weights .* but writes w"):
                engine.backward(x)
        else:
            engine.backward(x)
            close([net.w.detach()], [torch.full((2, 3), 0.1)])


@pytest.mark.parametrize("method", [lowland.SAMPa(), lowland.MomentumSAM(rho=0.1)], ids=lambda m: m.kind)
@pytest.mark.parametrize("start", [3, 5])
def test_a_forward_that_begins_to_write_weights_late_is_refused(method: Any, start: int) -> None:
    net, x = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), torch.randn(4, 3)
    engine = lowland.Engine(method, net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), square)
    for _ in range(start):
        engine.backward(x)
        engine.optimizer.step()
    net.register_forward_pre_hook(lambda m, _: clamp(m[1]))
    with pytest.raises(UsageError, match=r"forward must not write weights .* but writes 1\.weight"):
        engine.backward(x)
    assert engine.step == start


def clamp(layer: nn.Module) -> None:
    with torch.no_grad():
        layer.weight.clamp_(-0.01, 0.01)


def test_a_graph_that_a_forward_has_kept_is_refused_in_words() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v = nn.Parameter(torch.tensor([[1.0, 2.0, 2.0]]))

        @functools.lru_cache  # noqa: B019
        def weight(self) -> Tensor:
            return self.v / self.v.norm()

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight().T

    net = Cached()
    with pytest.raises(UsageError, match="every pass must compute its own graph, but backward met that of an earlier"):
        lowland.Engine(lowland.SAM(), net, sgd(net), square).backward(torch.randn(4, 3))
    assert net.v.grad is None


class Recomputed(torch.autograd.Function):
    """Checkpointing of one's own: its backward runs another one."""

    @staticmethod
    def forward(ctx: Any, block: nn.Module, x: Tensor) -> Tensor:
        ctx.block = block
        ctx.save_for_backward(x)
        with torch.no_grad():
            return block(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.block(x)
        torch.autograd.backward(out, grad)
        return None, x.grad


class Blocks(nn.Module):
    def __init__(self, way: str | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.way, self.on = nn.Linear(3, 4), nn.Linear(4, 2), way, way != "later"
        self.block = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 4))
        if way == "compiled":
            self.block.compile(backend="eager")

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.way is None or not self.on:
            h = self.block(h)
        elif self.way == "own":
            h = Recomputed.apply(self.block, h)
        elif self.way == "sequential":
            h = checkpoint_sequential(self.block, 2, h, use_reentrant=True)
        else:
            h = checkpoint(self.block, h, use_reentrant=True)
        return self.last(h)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of ESAM's pass without a gradient
@pytest.mark.parametrize("text", ["sam-on:rho=0.5", "sl-sam:s=0.4", "esam"])
@pytest.mark.parametrize("way", ["own", "sequential", "later", "compiled"])
def test_recomputation_of_any_kind_under_methods_that_choose_tensors(way: str, text: str) -> None:
    def trained(way: str | None) -> list[Tensor]:
        net = Blocks(way)
        engine = lowland.Engine(make(text), net, sgd(net), square)
        for step in range(4):
            net.on = way != "later" or step >= 2
            engine.backward(torch.randn(6, 3, generator=torch.Generator().manual_seed(step)))
            engine.optimizer.step()
            engine.optimizer.zero_grad()
        return [p.detach() for p in net.parameters()]

    close(trained(way), trained(None))


class Odd(nn.Parameter):
    """A parameter of a type of its own, whose values are not compared."""


@of_a_cpu
def test_an_ordinary_parameter_is_compared_beside_a_smaller_one_that_is_not() -> None:
    net, writes = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), []
    net[0].odd = nn.Parameter(torch.ones(()))
    net[0].odd.__class__ = Odd

    def write(weight: Tensor) -> None:
        for p in net.parameters() if writes else ():
            p.data.mul_(0.9)

    net[0].weight.register_post_accumulate_grad_hook(write)
    engine = lowland.Engine(lowland.SAM(), net, sgd(net), lambda m, x: (m(x) * m[0].odd).square().mean(1))
    for _ in range(5):
        engine.backward(torch.randn(5, 3))
    writes.append(True)
    with pytest.raises(UsageError, match=r"weights must stay where they are .* but 1\.bias changed"):
        engine.backward(torch.randn(5, 3))
