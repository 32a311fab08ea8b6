from __future__ import annotations

import pytest
import torch
from torch import nn

from lowland import SAM, Engine, LookSAM, MicroSAM, Plain, SAMPa


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def each(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def batch(count: int):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, generator=generator), torch.randint(2, (count,), generator=generator)


def forward_in_bf16(model, b):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return each(model, b)


@pytest.mark.parametrize(
    "method", [Plain(), SAM(rho=0.5), SAMPa(rho=0.5), LookSAM(rho=0.5, k=2), MicroSAM(rho=0.5, m=2)], ids=repr
)
def test_autocast_around_the_step_equals_autocast_in_the_loss(method):
    # Autocast keeps bf16 copies of the weights until its outermost context ends; were they kept across a
    # displacement, every pass would see the weights of the first.
    def run(outer):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        engine, losses = Engine(method, model, optimizer, each if outer else forward_in_bf16), []
        for step in range(4):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outer):
                losses.append(engine.backward(batch(6 + step)))
            optimizer.step()
            optimizer.zero_grad()
        return losses + [p.detach().clone() for p in model.parameters()]

    for a, b in zip(run(outer=True), run(outer=False), strict=True):
        assert torch.equal(a, b)


def test_a_forward_pass_before_the_step_does_not_leave_its_copies():
    model = network()
    engine = Engine(SAM(rho=0.5), model, torch.optim.SGD(model.parameters(), lr=0.1), each)
    b = batch(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = each(model, b).mean()
        engine.backward(b)
        after = each(model, b).mean()
    assert torch.equal(before, after)
    other = network()
    Engine(SAM(rho=0.5), other, torch.optim.SGD(other.parameters(), lr=0.1), forward_in_bf16).backward(b)
    assert torch.equal(model[0].weight.grad, other[0].weight.grad)
