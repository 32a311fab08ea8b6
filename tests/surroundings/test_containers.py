"""Tensors in lists, queues, dictionaries, variables and slots, and numbers in attributes, that passes change."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch
from hand import close, grads, norm, sgd, square
from torch import Tensor, nn

import lowland

METHODS = [lowland.SAM(rho=0.5), lowland.SAMPa(), lowland.LookSAM(k=2)]
each = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.kind)
SCALE = torch.ones(())


def losses(model: Any, batch: Any, scale: Any) -> Tensor:
    found = square(model, batch) * scale
    return found.clone() if isinstance(scale, Tensor) else found


def in_place() -> Any:
    scale = torch.ones(())

    def loss(model: Any, batch: Any) -> Tensor:
        found = losses(model, batch, scale.clone())
        scale.mul_(0.5)
        return found

    return loss, lambda: scale


def bound_anew() -> Any:
    scale = torch.ones(())

    def loss(model: Any, batch: Any) -> Tensor:
        nonlocal scale
        found, scale = losses(model, batch, scale), scale * 0.5
        return found

    return loss, lambda: scale


def of_the_module() -> Any:
    global SCALE
    SCALE = torch.ones(())

    def loss(model: Any, batch: Any) -> Tensor:
        global SCALE
        found, SCALE = losses(model, batch, SCALE), SCALE * 0.5
        return found

    return loss, lambda: SCALE


def in_a_slot() -> Any:
    class Slotted:
        __slots__ = ("scale",)

        def __init__(self) -> None:
            self.scale = torch.ones(())

        def __call__(self, model: Any, batch: Any) -> Tensor:
            found, self.scale = losses(model, batch, self.scale), self.scale * 0.5
            return found

    loss = Slotted()
    return loss, lambda: loss.scale


def of_a_class() -> Any:
    class Shared:
        scale = torch.ones(())

        def __call__(self, model: Any, batch: Any) -> Tensor:
            found, Shared.scale = losses(model, batch, Shared.scale), Shared.scale * 0.5
            return found

    return Shared(), lambda: Shared.scale


def a_float() -> Any:
    class Criterion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = 1.0

        def forward(self, outputs: Tensor) -> Tensor:
            found, self.scale = outputs.square().mean(1) * self.scale, self.scale * 0.5
            return found

    criterion = Criterion()
    return lambda model, batch: criterion(model(batch)), lambda: torch.tensor(criterion.scale)


def in_a_list() -> Any:
    scales = [torch.ones(()), torch.ones(())]

    def loss(model: Any, batch: Any) -> Tensor:
        found = losses(model, batch, scales[0] * scales[1])
        scales[0] = scales[0] * 0.25
        scales[1].mul_(2.0)
        return found

    return loss, lambda: scales[0] * scales[1]


WAYS = [in_place, bound_anew, of_the_module, in_a_slot, of_a_class, a_float, in_a_list]


@each
@pytest.mark.parametrize("way", WAYS, ids=lambda w: w.__name__)
def test_a_running_scale_moves_once_per_step_wherever_it_is(method: Any, way: Any) -> None:
    loss, scale = way()
    net, x = nn.Linear(3, 2), torch.randn(4, 3)
    engine = lowland.Engine(method, net, sgd(net), loss)
    for _ in range(4):
        engine.backward(x)
    close([scale()], [torch.tensor(0.5**4)])


@pytest.mark.parametrize("way", WAYS, ids=lambda w: w.__name__)
def test_both_passes_of_sam_see_the_same_scale(way: Any) -> None:
    net, x = nn.Linear(3, 2), torch.randn(4, 3)
    engine = lowland.Engine(lowland.SAM(rho=0.1), net, sgd(net), way()[0])
    engine.backward(x)
    net.zero_grad()
    engine.backward(x)

    def gradient(at: list[Tensor]) -> list[Tensor]:
        w = [(p.detach() + t).requires_grad_() for p, t in zip(net.parameters(), at, strict=True)]
        return list(torch.autograd.grad(0.5 * nn.functional.linear(x, *w).square().mean(), w))

    g = gradient([torch.zeros_like(p) for p in net.parameters()])
    close(grads(net), gradient([0.1 * t / norm(g) for t in g]))


class Average:
    def __init__(self) -> None:
        self.value = torch.zeros(())


class Holding(nn.Module):
    """A queue with a pointer in Python, lists, a dict, and an object that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.hidden = nn.Linear(3, 2), [nn.BatchNorm1d(3, momentum=1.0).double()]
        self.queue, self.made, self.pointer = torch.zeros(16, 3), deque[Tensor](maxlen=9), 0
        self.list, self.dict, self.anew = [torch.zeros(())], {"a": torch.zeros(())}, [torch.zeros(())]
        self.average = Average()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.queue[self.pointer : self.pointer + len(x)] = x
            self.pointer += len(x)
            self.made.append(x)
            self.list[0] += 1
            self.dict["a"] = self.dict["a"] + 1
            self.anew = [self.anew[0] + 1]
            self.average.value = self.average.value + 1
            self.hidden[0](x)
        return self.inner(x)


@each
def test_what_a_module_holds_beside_buffers_changes_once_per_step(method: Any) -> None:
    net, steps = Holding(), 3
    engine = lowland.Engine(method, net, sgd(net), square)
    batches = [torch.randn(4, 3) for _ in range(steps)]
    for x in batches:
        engine.backward(x)
    counted = [net.list[0], net.dict["a"], net.anew[0], net.average.value, net.hidden[0].num_batches_tracked]
    assert [int(t) for t in counted] == [steps] * 5
    assert (net.pointer, len(net.made)) == (4 * steps, steps)
    close([net.queue[: 4 * steps]], [torch.cat(batches)])
