"""Arguments of the wrong kind, and calls that would train on nothing, are refused with a sentence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lowland
from lowland import L2, SAM, Engine
from lowland.core.errors import ArgumentError, LossError, ParameterError, UsageError
from lowland.methods import make


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(6, n, generator=generator, dtype=torch.float64) for n in (3, 2))


def good(model, batch):
    return (model(batch[0]) - batch[1]).square().mean(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_fn": nn.CrossEntropyLoss()}, "loss_fn must be a function .* CrossEntropyLoss does not take"),
        ({"loss_fn": nn.CrossEntropyLoss}, "loss_fn must be a function"),
        ({"loss_fn": nn.functional.mse_loss}, "loss_fn must be a function .* mse_loss"),
        ({"loss_fn": 3}, "loss_fn must be a function .* but is 3"),
        ({"loss_fn": lambda batch: batch}, "cannot be called so"),
        ({"loss_fn": lambda a, b, c: a}, "cannot be called so"),
        ({"scaler": True}, "scaler must be a torch.amp.GradScaler or None, but is True"),
        ({"seed": None}, "seed must be an integer, but is None"),
        ({"seed": 0.5}, "seed must be an integer"),
        ({"rng": None}, "rng must be one of"),
        ({"mesh": 2}, "mesh must be a torch DeviceMesh"),
        ({"executor": "local"}, "executor must be an Executor"),
        ({"executor": lowland.executors.Local}, "executor must be an Executor"),
        ({"allow_unaveraged": 1}, "allow_unaveraged must be True or False"),
        ({"micro_batch": True}, "micro_batch must be an integer"),
        ({"method": SAM}, r"is the class; pass a value such as SAM\(\)"),
        ({"method": "sam"}, "method must be a Method"),
        ({"model": []}, "model must hold at least one"),
        ({"model": [3]}, r"model\[0\] must be a torch.nn.Module"),
        ({"model": 3}, "model must be a torch.nn.Module"),
        ({"model": {"a.b": encoder()}}, "keys of model"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_arguments_of_the_wrong_kind_are_refused(change, message):
    net = encoder()
    given = {"method": SAM(), "model": net, "loss_fn": good} | change
    with pytest.raises(ArgumentError, match=message):
        Engine(optimizer=torch.optim.SGD(net.parameters(), lr=0.1), **given)


def test_a_positional_radius_and_a_method_for_make_are_refused_with_a_sentence():
    with pytest.raises(ArgumentError, match=r"SAM takes its fields by name, but got 0\.05 .*SAM\(rho=0\.05\)"):
        SAM(0.05)
    with pytest.raises(ArgumentError, match=r"text must be .*but is SAM"):
        make(SAM())


def test_a_loss_function_that_calls_backward_is_refused():
    net = encoder()

    def loss_fn(model, batch):
        loss = good(model, batch).mean()
        loss.backward(retain_graph=True)
        return loss

    engine = Engine(SAM(), net, torch.optim.SGD(net.parameters(), lr=0.1), loss_fn)
    with pytest.raises(LossError, match="only compute the loss"):
        engine.backward(batch())
    assert all(p.grad is None for p in net.parameters())
    assert engine.step == 0


def test_leaving_the_loop_over_passes_early_warns():
    net = encoder()
    engine = Engine(SAM(), net, torch.optim.SGD(net.parameters(), lr=0.1))
    loop = engine.passes(batch())
    with next(loop) as p:
        p.backward(good(net, p.batch))
    with pytest.warns(UserWarning, match="left before its end, so the step was taken back"):
        loop.close()
    assert engine.step == 0
    assert all(p.grad is None for p in net.parameters())


def test_a_select_that_leaves_nothing_is_refused():
    net = encoder()
    every = list(net.parameters())
    optimizer = torch.optim.SGD([{"params": every[:2], "rho": 0.0}, {"params": every[2:]}], lr=0.1)
    for method in (SAM, lowland.LookSAM, lowland.SAMPa):
        with pytest.raises(ParameterError, match=r"geometry\.select must accept at least one"):
            Engine(method(geometry=L2(select=lambda *a: False)), net, optimizer, good)
    with pytest.raises(ParameterError, match="accept at least one"):
        Engine(lowland.Late(start=3, inner=SAM(geometry=L2(select=lambda *a: False))), net, optimizer, good)
    first = L2(select=lambda module, name, p: name.startswith("0."))
    with pytest.raises(ParameterError, match="groups with rho=0"):
        Engine(SAM(geometry=first), net, optimizer, good)
    Engine(SAM(rho=0.0, geometry=first), net, optimizer, good)  # plain on purpose
    every_0 = torch.optim.SGD([{"params": every, "rho": 0.0}], lr=0.1)
    Engine(SAM(), net, every_0, good)


def test_adasam_wants_amsgrad():
    net = encoder()
    Engine(lowland.AdaSAM(), net, torch.optim.Adam(net.parameters(), amsgrad=True), good)
    for other in (torch.optim.AdamW(net.parameters()), torch.optim.Adam(net.parameters())):
        with pytest.raises(UsageError, match=r"AdaSAM .*amsgrad=True"):
            Engine(lowland.AdaSAM(), net, other, good)
