"""Copies of engines, by deepcopy and by pickle, train their own modules."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from lowland import SAM, BiSAM, Criterion, Engine, FunctionalSAM, LookSAM, SAMPa
from lowland.engine import doors
from lowland.executors import Batched


def parts_of(model):
    if isinstance(model, nn.Sequential):
        return model
    return list(model.values()) if isinstance(model, dict) else model


def outputs(model, batch):
    encoder, head = parts_of(model)
    return head(torch.tanh(encoder(batch[0])))


def losses(out, batch):
    return (out[:, 0] - batch[1]).square()


def loss_fn(model, batch):
    return losses(outputs(model, batch), batch)


def surrogate(model, batch):
    return loss_fn(model, batch).sqrt()


def batch(step: int):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(6, 4, generator=generator), torch.randn(6, generator=generator)


GIVEN = {
    "list": lambda encoder, head: [encoder, head],
    "tuple": lambda encoder, head: (encoder, head),
    "dict": lambda encoder, head: {"encoder": encoder, "head": head},
    "module": nn.Sequential,
}
METHODS = {
    "sam": (SAM(), loss_fn),
    "sampa": (SAMPa(), loss_fn),
    "looksam": (LookSAM(k=2), loss_fn),
    "bisam": (BiSAM(surrogate=surrogate), loss_fn),
    "functional": (FunctionalSAM(), Criterion(outputs, losses)),
}
COPIES = {
    "deepcopy of a new one": (copy.deepcopy, 0),
    "deepcopy": (copy.deepcopy, 3),
    "pickle": (lambda engine: pickle.loads(pickle.dumps(engine)), 0),
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize(("method", "function"), METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("batched", [False, True], ids=["local", "batched"])
@pytest.mark.parametrize(("copied", "steps"), COPIES.values(), ids=COPIES)
def test_a_copy_goes_on_as_the_original(steps, batched, method, function, given, copied):
    torch.manual_seed(0)
    modules = nn.Linear(4, 5), nn.Linear(5, 1)
    params = [p for m in modules for p in m.parameters()]
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    engine = Engine(method, given(*modules), optimizer, function, executor=Batched(2) if batched else None)

    def train(each: Engine, steps) -> None:
        for step in steps:
            each.backward(batch(step))
            each.optimizer.step()
            each.optimizer.zero_grad()

    train(engine, range(steps))
    other = copied(engine)
    assert doors.has_several(other.loss_fn) == doors.has_several(engine.loss_fn) == (given is not nn.Sequential)
    before = [p.detach().clone() for p in params]
    train(other, range(steps, steps + 3))
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(params, before, strict=True))
    train(engine, range(steps, steps + 3))
    assert all(torch.equal(p, q) for p, q in zip(engine.params, other.params, strict=True))
    assert not torch.equal(params[0], before[0])
