from __future__ import annotations

import torch

from lowland.lab.training.memory import LiveTensors


def test_peak_and_what_is_left():
    with LiveTensors() as meter:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b.view(10, 100)  # shares its memory
        b.add_(1)
        d = [c * 2 for _ in range(3)]
        del d
    assert meter.live == 4000
    assert meter.peak == 4000 + 3 * 4000


def test_what_was_there_before_does_not_count():
    weight = torch.nn.Parameter(torch.zeros(100, 100))
    x = torch.ones(3, 100)
    with LiveTensors() as meter:
        loss = torch.nn.functional.linear(x, weight).sum()  # through a view of the weight
        assert meter.peak <= 4 * (3 * 100 + 1)
        loss.backward()
    assert meter.peak < 4 * (100 * 100 + 2000)


def test_backward_and_optimizer_are_seen():
    n = 4 * 100 * 100
    with LiveTensors() as meter:
        weight = torch.nn.Parameter(torch.zeros(100, 100))
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        (weight.square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert meter.live - 2 * n < 100  # weight and momentum; scalars besides
    assert 3 * n <= meter.peak < 5 * n


def test_bits_are_the_same():
    def work():
        torch.manual_seed(0)
        layer = torch.nn.Linear(20, 20)
        layer(torch.randn(8, 20)).square().sum().backward()
        return layer.weight.grad

    with LiveTensors():
        measured = work()
    assert torch.equal(measured, work())


def test_other_tensors_do_not_count():
    outside = torch.zeros(1000)
    with LiveTensors() as meter:
        del outside
        torch.zeros(10)
    assert meter.live == 0
    assert meter.peak == 40
