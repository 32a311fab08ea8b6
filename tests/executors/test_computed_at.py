"""Displacements that come as functions."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from problems import batch, loss_fn, net

from lowland.core.errors import UsageError
from lowland.core.probe import Probe
from lowland.executors.base import Work
from lowland.executors.batched import Batched
from lowland.executors.local import Local


def work(order: list[str] | None = None) -> Work:
    def loss(model, examples):
        if order is not None:
            order.append("pass")
        return loss_fn(model, examples)

    model = net()
    return Work(model, list(model.parameters()), loss_fn=loss, scaler=None, micro_batch=None, rng="free")


def test_they_are_computed_one_pass_at_a_time():
    order: list[str] = []
    w = work(order)

    def displacement(name):
        assert not torch.is_grad_enabled()
        order.append(name)
        return [0.1 * p for p in w.params]

    before = [p.detach().clone() for p in w.params]
    found = Local().run(w, tuple(Probe(batch(0), at=partial(displacement, name)) for name in "ab"))
    assert order == ["a", "pass", "b", "pass"]
    assert all(torch.equal(p, b) for p, b in zip(w.params, before, strict=True))
    (given,) = Local().run(w, (Probe(batch(0), at=[0.1 * p.detach() for p in w.params]),))
    for reading in found:
        assert torch.equal(reading.loss, given.loss)
        assert all(torch.equal(a, b) for a, b in zip(reading.grad, given.grad, strict=True))


@pytest.mark.parametrize("executor", [Local(), Batched(width=2)], ids=("Local", "Batched"))
def test_one_of_the_wrong_length_is_refused_and_the_probe_is_spent(executor):
    w = work()
    probes = tuple(Probe(batch(0), at=at) for at in (lambda: [torch.zeros(1)], None))
    for length in (1, 0):
        with pytest.raises(UsageError, match=f"one tensor for each of {len(w.params)} parameters, but has {length};"):
            executor.run(w, probes)


@pytest.mark.parametrize("executor", [Local(), Batched(width=2)], ids=("Local", "Batched"))
def test_what_they_raise_leaves_the_weights_in_place(executor):
    w = work()
    before = [p.detach().clone() for p in w.params]

    def fails():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        executor.run(w, (Probe(batch(0), at=[0.1 * p.detach() for p in w.params]), Probe(batch(0), at=fails)))
    assert all(torch.equal(p, b) for p, b in zip(w.params, before, strict=True))
