"""What forward writes beside torch's own buffers: frozen parameters, and tensors written past their versions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hand import close, sgd, square
from torch import Tensor, nn

import lowland
from lowland.core.errors import UsageError

METHODS = [lowland.SAM(rho=0.5), lowland.SAMPa(), lowland.LookSAM(k=2)]
each = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.kind)


class Teacher(nn.Module):
    """A student and a frozen average of its weights, which every forward moves."""

    def __init__(self, way: str, width: int = 2) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(3, width), nn.Linear(3, width).requires_grad_(False)
        self.way, self.on = way, True

    def forward(self, x: Tensor) -> Tensor:
        for a, b in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            if self.on and self.way == "in place":
                with torch.no_grad():
                    a.mul_(0.9).add_(b, alpha=0.1)
            elif self.on and self.way == "data":
                a.data.mul_(0.9).add_(b.data, alpha=0.1)
            elif self.on:
                a.data = a.data * 0.9 + b.data * 0.1
        return self.student(x) - self.teacher(x)


def moved(net: Teacher) -> list[Tensor]:
    """The teacher after one forward at the student's weights."""
    pairs = zip(net.teacher.parameters(), net.student.parameters(), strict=True)
    return [0.9 * a.detach() + 0.1 * b.detach() for a, b in pairs]


def trained(net: nn.Module, method: Any) -> lowland.Engine:
    chosen = [p for p in net.parameters() if p.requires_grad]
    return lowland.Engine(method, net, torch.optim.SGD(chosen, lr=0.1, momentum=0.9), square)


@each
@pytest.mark.parametrize("way", ["in place", "data", "exchanged data"])
def test_a_teacher_in_the_model_moves_once_per_step(method: Any, way: str) -> None:
    net, x = Teacher(way), torch.randn(4, 3)
    engine = trained(net, method)
    for _ in range(1 if method.kind == "SAMPa" else 3):  # then SAMPa reports at displaced weights
        expected = moved(net)
        engine.backward(x)
        close(net.teacher.parameters(), expected)
        engine.optimizer.step()
        engine.optimizer.zero_grad()


def test_sam_with_a_teacher_is_that_by_hand() -> None:
    net, x = Teacher("in place"), torch.randn(4, 3)
    weights = list(net.student.parameters())
    old = moved(net)

    def gradient(at: list[Tensor]) -> list[Tensor]:  # every pass sees the teacher after one move, by its own student
        w = [(p.detach() + t).requires_grad_() for p, t in zip(weights, at, strict=True)]
        k = [o + 0.1 * t for o, t in zip(old, at, strict=True)]
        out = x @ w[0].T + w[1] - (x @ k[0].T + k[1])
        return list(torch.autograd.grad(out.square().mean(), w))

    g = gradient([torch.zeros_like(p) for p in weights])
    length = torch.cat([t.flatten() for t in g]).norm() + 1e-12
    expected = gradient([0.5 * t / length for t in g])
    trained(net, lowland.SAM(rho=0.5)).backward(x)
    close([p.grad for p in weights], expected)


@pytest.mark.parametrize("way", ["in place", "exchanged data"])
@pytest.mark.parametrize("trainable", [True, False])
@each
def test_a_teacher_beside_the_model_moves_once_per_step(method: Any, trainable: bool, way: str) -> None:
    net, x = nn.Linear(3, 2), torch.randn(4, 3)
    teacher = copy.deepcopy(net).requires_grad_(trainable)  # equal to its student, so it moves in the second step first

    def loss(model: Any, batch: Any) -> Tensor:
        with torch.no_grad():
            for a, b in zip(teacher.parameters(), net.parameters(), strict=True):
                if way == "in place":
                    a.mul_(0.9).add_(b, alpha=0.1)
                else:
                    a.data = a.data * 0.9 + b.data * 0.1
            target = teacher(batch)
        return (model(batch) - target + 1).square().mean(1)

    engine = lowland.Engine(method, net, sgd(net), loss)
    for step in range(6):
        pairs = zip(teacher.parameters(), net.parameters(), strict=True)
        expected = [0.9 * a.detach() + 0.1 * b.detach() for a, b in pairs]
        engine.backward(x)
        if method.kind != "SAMPa" or step == 0:  # then SAMPa reports at displaced weights
            close(teacher.parameters(), expected)
        engine.optimizer.step()
        engine.optimizer.zero_grad()


def test_a_teacher_that_moves_late_or_is_too_large_is_refused_once() -> None:
    net, x = Teacher("in place", 70), torch.randn(4, 3)
    net.on = False
    engine = trained(net, lowland.SAM())
    engine.backward(x)
    net.on = True
    with pytest.raises(UsageError, match=r"teacher\.weight was written for the first time after the first step, or"):
        engine.backward(x)
    assert engine.step == 1
    expected = moved(net)
    engine.backward(x)
    close(net.teacher.parameters(), expected)


def test_large_frozen_parameters_are_refused_once_all_together() -> None:
    net, x = nn.Linear(3, 2), torch.randn(4, 3)
    for name in ("one", "two"):
        net.register_parameter(
            name, nn.Parameter(torch.zeros(70_000), requires_grad=False)
        )  # more than what is trained
    net.register_forward_pre_hook(lambda m, _: [p.add_(1) for p in (m.one, m.two)] and None)
    engine = trained(net, lowland.SAM())
    with pytest.raises(UsageError, match=r"one was written .* large frozen parameter"):
        engine.backward(x)
    before = float(net.one[0])
    for step in range(3):
        engine.backward(x)
        assert float(net.one[0]) == float(net.two[0]) == before + step + 1


@each
@pytest.mark.parametrize("way", ["data of a large one", "resized", "exchanged data"])
def test_buffers_written_past_their_versions(method: Any, way: str) -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 2)
            self.register_buffer("seen", torch.zeros(70_000 if "large" in way else 1))

        def forward(self, x: Tensor) -> Tensor:
            if way == "resized":
                self.seen.resize_(len(self.seen) + 1).fill_(len(self.seen) - 1)
            elif way == "exchanged data":
                self.seen.data = self.seen.data + 1
            else:
                self.seen.data.add_(1)
            return self.inner(x)

    net, x = Counter(), torch.randn(4, 3)
    engine = lowland.Engine(method, net, sgd(net), square)
    for _ in range(4):
        engine.backward(x)
    assert float(net.seen[-1]) == 4


@each
def test_a_cache_under_a_private_name_is_that_of_its_pass(method: Any) -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v, self._w = nn.Parameter(torch.tensor([[1.0, 2.0, 2.0]])), None

        def forward(self, x: Tensor) -> Tensor:
            if self._w is None or not self.keep:
                self._w = self.v / self.v.norm()
            return x @ self._w.T

    x = torch.randn(4, 3)
    found = []
    for keep in (True, False):
        net = Cached()
        net.keep = keep
        engine = lowland.Engine(method, net, sgd(net), square)
        for _ in range(3):
            engine.backward(x)
            engine.optimizer.step()
            engine.optimizer.zero_grad()
            net._w = None
        found.append(net.v.detach())
    close([found[0]], [found[1]])
