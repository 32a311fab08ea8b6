"""State that is made late, in hooks, or by the loss function: once per step, and the same in every pass."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from hand import close, grads, norm, sgd, square
from torch import Tensor, nn

import lowland

METHODS = [lowland.SAM(rho=0.5), lowland.SAMPa(), lowland.GSAM(), lowland.KSAM(k=2), lowland.MicroSAM(m=1)]
each = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.kind)
NUMBER = 0.0


def float_of_a_closure() -> Any:
    n = 0.0

    def loss(model: Any, batch: Any) -> Tensor:
        nonlocal n
        n += 1.0
        return square(model, batch)

    return loss, lambda: n


def float_of_the_module() -> Any:
    global NUMBER
    NUMBER = 0.0

    def loss(model: Any, batch: Any) -> Tensor:
        global NUMBER
        NUMBER += 1.0
        return square(model, batch)

    return loss, lambda: NUMBER


def float_in_a_list() -> Any:
    kept = [0.0]

    def loss(model: Any, batch: Any) -> Tensor:
        kept[0] += 1.0
        return square(model, batch)

    return loss, lambda: kept[0]


def pointer_beside_a_queue() -> Any:
    rows, pointer = torch.zeros(16, 3), 0

    def loss(model: Any, batch: Any) -> Tensor:
        nonlocal pointer
        rows[pointer] = batch[0]
        pointer += 1
        return square(model, batch)

    return loss, lambda: pointer


def array_of_a_closure() -> Any:
    kept = np.zeros(3)

    def loss(model: Any, batch: Any) -> Tensor:
        kept[0] += 1
        return square(model, batch)

    return loss, lambda: kept[0]


WAYS = [float_of_a_closure, float_of_the_module, float_in_a_list, pointer_beside_a_queue, array_of_a_closure]


@each
@pytest.mark.parametrize("way", WAYS, ids=lambda w: w.__name__)
def test_a_loss_function_s_state_changes_once_per_step(method: Any, way: Any) -> None:
    (loss, count), net, x = way(), nn.Linear(3, 2), torch.randn(4, 3)
    engine = lowland.Engine(method, net, sgd(net), loss)
    for _ in range(5):
        engine.backward(x)
    assert count() == 5


def test_whole_numbers_by_themselves_may_count_passes() -> None:
    calls = 0
    logged: list[Any] = []

    def loss(model: Any, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        logged.append((1.0, np.zeros(2)))
        return square(model, batch)

    net, x = nn.Linear(3, 2), torch.randn(4, 3)
    engine = lowland.Engine(lowland.SAM(), net, sgd(net), loss)
    engine.backward(x)
    engine.backward(x)
    assert calls == len(logged) == 4


@each
@pytest.mark.parametrize("way", ["in place", "anew"])
def test_hooks_keep_state_too(method: Any, way: str) -> None:
    net, x, seen = nn.Linear(3, 2), torch.randn(4, 3), torch.zeros(())

    def count(m: nn.Module, inputs: Any, outputs: Tensor) -> None:
        nonlocal seen
        if way == "in place":
            seen.add_(1)
        else:
            seen = seen + 1

    net.register_forward_hook(count)
    engine = lowland.Engine(method, net, sgd(net), square)
    for _ in range(5):
        engine.backward(x)
    assert float(seen) == 5


def test_a_hook_s_list_is_a_log_of_passes() -> None:
    net, x, weights, queue = nn.Linear(3, 2), torch.randn(4, 3), [], deque(maxlen=9)

    def note(m: nn.Module, inputs: Any) -> None:
        weights.append(m.weight.detach().clone())
        queue.append(inputs[0])

    net.register_forward_pre_hook(note)
    lowland.Engine(lowland.SAM(rho=0.5), net, sgd(net), square).backward(x)
    assert len(weights) == 2
    assert not torch.equal(*weights)
    assert len(queue) == 1


class Criterion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.count = 0

    def forward(self, outputs: Tensor) -> Tensor:
        found = outputs.square().mean() * self.scale.clone()
        self.scale.mul_(0.5)
        self.count += 1
        return found


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("method", [lowland.SAM(rho=0.5), lowland.LookSAM(k=2), lowland.GSAM()], ids=lambda m: m.kind)
def test_a_closure_s_criterion_changes_once_per_step(method: Any, start: int) -> None:
    net, x, criterion = nn.Linear(3, 2), torch.randn(4, 3), Criterion()
    optimizer = lowland.ClosureOptimizer(lowland.Engine(method, net, sgd(net)))

    def step(own: Any, batch: Tensor) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = own(net(batch))
            loss.backward()
            return loss

        def plain() -> Tensor:
            optimizer.zero_grad()
            loss = net(batch).square().mean()
            loss.backward()
            return loss

        optimizer.step(plain if own is None else closure)

    for number in range(start + 5):
        step(None if number < start else criterion, x)
    assert (float(criterion.scale), criterion.count) == (0.5**5, 5)


class Later(nn.Module):
    """Makes state at a step that is not the first."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.inner, self.way, self.on = nn.Linear(3, 2), way, False

    def forward(self, x: Tensor) -> Tensor:
        if self.on and not hasattr(self, "seen"):
            if self.way == "buffer":
                self.register_buffer("seen", torch.zeros(()))
            elif self.way == "module":
                self.seen: Any = nn.BatchNorm1d(3, affine=False)
            else:
                self.seen = [] if self.way == "list" else torch.zeros(())
        if self.on and self.way == "list":
            self.seen.append(x)
        elif self.on and self.way == "module":
            self.seen(x)
        elif self.on:
            self.seen.add_(1)
        return self.inner(x)

    def count(self) -> int:
        seen = self.seen.num_batches_tracked if self.way == "module" else self.seen
        return len(seen) if self.way == "list" else int(seen)


@each
@pytest.mark.parametrize("way", ["buffer", "attribute", "list", "module"])
def test_state_that_is_made_late_changes_once_per_step(method: Any, way: str) -> None:
    net, x = Later(way), torch.randn(4, 3)
    engine = lowland.Engine(method, net, sgd(net), square)
    for step in range(8):
        net.on = step >= 3
        engine.backward(x)
    assert net.count() == 5


@pytest.mark.parametrize("way", ["numbers", "array"])
def test_both_passes_of_sam_see_the_same_state(way: str) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.kept = nn.Linear(3, 2), {"numbers": {"s": 1.0}, "array": {"s": np.ones(())}}[way]

        def forward(self, x: Tensor) -> Tensor:
            scale = float(self.kept["s"])
            self.kept["s"] = self.kept["s"] * 0.5
            return self.inner(x) * scale

    net, x = Scaled(), torch.randn(4, 3)
    engine = lowland.Engine(lowland.SAM(rho=0.1), net, sgd(net), square)
    for step in range(3):
        net.zero_grad()
        engine.backward(x)

        def gradient(at: list[Tensor], scale: float = 0.5**step) -> list[Tensor]:
            w = [(p.detach() + t).requires_grad_() for p, t in zip(net.parameters(), at, strict=True)]
            return list(torch.autograd.grad((scale * nn.functional.linear(x, *w)).square().mean(), w))

        g = gradient([torch.zeros_like(p) for p in net.parameters()])
        close(grads(net), gradient([0.1 * t / norm(g) for t in g]))
