"""Several modules and several optimizers; by hand, in float64."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

from lowland import L2, SAM, Engine, Plain, SAMPa
from lowland.core.errors import ParameterError, UsageError
from lowland.methods import make


class Weighted(nn.Module):
    """A criterion with a weight of its own that is trained."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, out, target):
        return ((out - target).square().mean(1) * self.scale.exp() - self.scale).sum() / len(out)


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(6, n, generator=generator, dtype=torch.float64) for n in (3, 2))


def pair_loss(model, batch):
    net, criterion = model
    return criterion(net(batch[0]), batch[1])


def muon_and_adamw(modules):
    every = list(dict.fromkeys(p for m in modules for p in m.parameters()))
    return [
        torch.optim.Muon([p for p in every if p.dim() == 2], lr=0.02, weight_decay=0.1),
        torch.optim.AdamW([p for p in every if p.dim() != 2], lr=0.01, weight_decay=0.1),
    ]


def sam_by_hand(params, loss, rho):
    """g(w + rho g/|g|), and g."""
    g = torch.autograd.grad(loss(), params)
    size = torch.stack([t.square().sum() for t in g]).sum().sqrt()
    saved = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, t in zip(params, g, strict=True):
            p.add_(rho * t / size)
    up = torch.autograd.grad(loss(), params)
    with torch.no_grad():
        for p, s in zip(params, saved, strict=True):
            p.copy_(s)
    return up


needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


@needs_muon
def test_sam_over_two_modules_and_two_optimizers_is_a_step_by_hand():
    mine, theirs = [encoder(), Weighted()], [encoder(), Weighted()]
    optimizers, twins = muon_and_adamw(mine), muon_and_adamw(theirs)
    engine = Engine(SAM(rho=0.1), mine, optimizers, pair_loss)
    assert engine.names[0] == "0.0.weight"
    assert engine.names[-1] == "1.scale"
    params = [p for m in theirs for p in m.parameters()]
    for step in range(4):
        engine.backward(batch(step))
        for p, g in zip(params, sam_by_hand(params, lambda s=step: pair_loss(theirs, batch(s)), 0.1), strict=True):
            p.grad = g
        for o in optimizers + twins:
            o.step()
            o.zero_grad()
    for p, q in zip(engine.params, params, strict=True):
        # Muon orthogonalizes in bfloat16, which turns the last bit of a gradient into up to 1e-3 of its step.
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12 if p.dim() != 2 else 1e-4)


@needs_muon
def test_previews_are_what_both_optimizers_then_do():
    modules = [encoder(), Weighted()]
    optimizers = muon_and_adamw(modules)
    engine = Engine(Plain(), modules, optimizers, pair_loss)
    for step in range(2):
        engine.backward(batch(step))
        for o in optimizers:
            o.step()
            o.zero_grad()
    engine.backward(batch(2))
    found = engine.lookahead([p.grad.clone() for p in engine.params])
    before = [p.detach().clone() for p in engine.params]
    for o in optimizers:
        o.step()
    for move, p, b in zip(found, engine.params, before, strict=True):
        torch.testing.assert_close(move, p.detach() - b, rtol=1e-12, atol=1e-15)


def sampa_by_hand(modules, optimizers, now, kept, rho, lam):
    """lam g(y) + (1 - lam) g_held(w + rho g_y/|g_y|), where copies of the optimizers really step to y; and g(y)."""
    g_y, held = kept
    twins, twin_optimizers = copy.deepcopy((modules, optimizers))
    params, there = ([p for m in found for p in m.parameters()] for found in (modules, twins))
    for p, g in zip(there, g_y, strict=True):
        p.grad = g.clone()
    for o in twin_optimizers:
        o.step()
    at_y = torch.autograd.grad(pair_loss(twins, batch(now)), there)
    size = torch.stack([g.square().sum() for g in g_y]).sum().sqrt()
    with torch.no_grad():
        for p, q, g in zip(there, params, g_y, strict=True):
            p.copy_(q + rho * g / size)
    tilde = torch.autograd.grad(pair_loss(twins, batch(held)), there)
    return [lam * a + (1 - lam) * t for a, t in zip(at_y, tilde, strict=True)], at_y


def sgd_and_rmsprop(modules):
    every = [p for m in modules for p in m.parameters()]
    sgd = torch.optim.SGD(every[1::2], lr=0.1, momentum=0.9, nesterov=True)
    return [sgd, torch.optim.RMSprop(every[::2], lr=0.01)]


@pytest.mark.parametrize("make", [pytest.param(muon_and_adamw, marks=needs_muon), sgd_and_rmsprop])
def test_sampa_previews_by_steps_that_copies_of_all_optimizers_take(make):
    modules = [encoder(), Weighted()]
    optimizers = make(modules)
    engine = Engine(SAMPa(rho=0.1, lam=0.3), modules, optimizers, pair_loss)
    kept = None
    for step in range(5):
        if kept is not None:
            expected, at_y = sampa_by_hand(modules, optimizers, step, kept, 0.1, 0.3)
        else:  # a cold start takes both gradients at the weights
            at_y = expected = torch.autograd.grad(pair_loss(modules, batch(step)), engine.params)
        engine.backward(batch(step))
        for p, g in zip(engine.params, expected, strict=True):
            # Another order of summation in the norm, in float64; y itself is the very same step.
            torch.testing.assert_close(p.grad, g, rtol=1e-11, atol=1e-13)
        # Its own g(y), since Muon, in bfloat16, would make much of the last bit.
        kept = engine.memory["grad_y"], step
        for mine, hand in zip(kept[0], at_y, strict=True):
            torch.testing.assert_close(mine, hand, rtol=1e-11, atol=1e-13)
        for o in optimizers:
            o.step()
            o.zero_grad()


def test_closed_forms_momentum_and_raw_steps_of_two_optimizers():
    net = encoder()
    first, second = list(net.parameters())[::2], list(net.parameters())[1::2]
    sgd, adam = torch.optim.SGD(first, lr=0.1, momentum=0.9), torch.optim.Adam(second, lr=0.01)
    engine = Engine(Plain(), net, [sgd, adam], lambda m, b: (m(b[0]) - b[1]).square().mean(1))
    for step in range(2):
        engine.backward(batch(step))
        for o in (sgd, adam):
            o.step()
            o.zero_grad()
    engine.backward(batch(2))
    grad = [p.grad.clone() for p in engine.params]
    raw, found = engine.lookahead(grad, raw=True), engine.lookahead(grad)
    for i, (p, g) in enumerate(zip(engine.params, grad, strict=True)):
        lr, state, key = (0.1, sgd.state, "momentum_buffer") if i % 2 == 0 else (0.01, adam.state, "exp_avg")
        torch.testing.assert_close(raw[i], -lr * g, rtol=1e-14, atol=0)
        assert torch.equal(engine.momentum()[i], state[p][key])
    before = [p.detach().clone() for p in engine.params]
    sgd.step()
    adam.step()
    for move, p, b in zip(found, engine.params, before, strict=True):
        torch.testing.assert_close(move, p.detach() - b, rtol=1e-12, atol=1e-15)


def test_sampa_sl_sam_and_scalers_work_with_two_optimizers():
    for text in ("sampa", "sl-sam:s=0.6", "momentum-sam:rho=0.1", "looksam:k=2"):
        net = encoder()
        every = list(net.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        optimizers = [torch.optim.SGD(every[:1], lr=0.1, momentum=0.9), torch.optim.AdamW(every[1:])]
        engine = Engine(make(text), net, optimizers, lambda m, b: (m(b[0]) - b[1]).square().mean(1), scaler=scaler)
        before = [p.detach().clone() for p in every]
        for step in range(3):
            engine.backward(batch(step))
            for o in optimizers:
                if any(p.grad is not None for g in o.param_groups for p in g["params"]):
                    scaler.step(o)
            scaler.update()
            for o in optimizers:
                o.zero_grad()
        assert sum(not torch.equal(p, b) for p, b in zip(every, before, strict=True)) >= 2


def test_a_loss_function_gets_what_was_passed_and_tied_parameters_count_once():
    net, head = encoder(), nn.Linear(3, 4).double()
    head.weight = net[0].weight
    seen = []

    def loss_fn(model, batch):
        seen.append(model)
        return (model["net"](batch[0]) + model["head"](batch[0])[:, :2]).square().mean(1)

    given = {"net": net, "head": head}
    every = list(dict.fromkeys([*net.parameters(), *head.parameters()]))
    engine = Engine(SAM(), given, torch.optim.SGD(every, lr=0.1), loss_fn)
    engine.backward(batch())
    assert all(model is given for model in seen)
    assert engine.names == ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias", "head.bias"]


def test_one_optimizer_is_engine_optimizer_and_several_are_not():
    net = encoder()
    every = list(net.parameters())
    one = torch.optim.SGD(every, lr=0.1)
    assert Engine(SAM(), net, one).optimizer is one
    assert Engine(SAM(), net, [one]).optimizers == [one]
    engine = Engine(SAM(), net, [torch.optim.SGD(every[:2], lr=0.1), torch.optim.SGD(every[2:], lr=0.1)])
    with pytest.raises(UsageError, match=r"this engine has 2; use engine\.optimizers"):
        _ = engine.optimizer


def test_a_parameter_in_two_optimizers_is_refused_by_name():
    net = encoder()
    every = list(net.parameters())
    with pytest.raises(ParameterError, match=r"in one optimizer, but 2\.weight is in two; give each"):
        Engine(SAM(), net, [torch.optim.SGD(every[:3], lr=0.1), torch.optim.SGD(every[2:], lr=0.1)])
    one = torch.optim.SGD(every, lr=0.1)
    with pytest.raises(ParameterError, match="one is there twice"):
        Engine(SAM(), net, [one, one])


def test_a_group_s_radius_is_read_from_any_optimizer():
    net = encoder()
    every = list(net.parameters())
    groups = [torch.optim.SGD(every[:2], lr=0.1), torch.optim.SGD([{"params": every[2:], "rho": 0.0}], lr=0.1)]
    engine = Engine(SAM(rho=0.05), net, groups)
    assert engine.radii(0.05, L2()) == [0.05, 0.05, 0.0, 0.0]


class Counting(nn.Module):
    """A criterion that counts its calls."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, out, target):
        self.calls += 1
        return (out - target).square().mean(1)


class Task:
    """A loss function that hides its criterion deep."""

    def __init__(self, criterion):
        self.parts = [{"criterion": criterion}]

    def __call__(self, one, several, model, batch):
        net = model if isinstance(model, nn.Module) else model[0]
        return self.parts[0]["criterion"](net(batch[0]), batch[1])


@pytest.mark.parametrize("several", [False, True])
def test_what_a_loss_function_writes_is_found_whether_there_is_one_module_or_several(several):
    net, criterion = encoder(), Counting()
    loss_fn = functools.partial(functools.partial(Task(criterion), 1), 2)
    engine = Engine(SAM(), [net] if several else net, torch.optim.SGD(net.parameters(), lr=0.1), loss_fn)
    for step in range(3):
        engine.backward(batch(step))
    assert criterion.calls == 3  # of 6 calls


@pytest.mark.parametrize("kind", [list, dict], ids=["list", "dict"])
def test_a_module_that_is_exchanged_in_the_list_is_refused_and_the_step_taken_back(kind):
    modules = [encoder(), Weighted()]
    given = modules if kind is list else dict(zip(["net", "criterion"], modules, strict=True))
    every = [p for m in modules for p in m.parameters()]
    optimizer = torch.optim.SGD(every, lr=0.1)
    engine = Engine(SAM(), given, optimizer, lambda m, b: pair_loss(list(m.values()) if kind is dict else m, b))
    engine.backward(batch())
    optimizer.zero_grad()
    given[0 if kind is list else "net"] = encoder()
    with pytest.raises(ParameterError, match=r"model\[(0|'net')\] was exchanged, added or removed since; make a new"):
        engine.backward(batch())
    assert engine.step == 1
    assert all(p.grad is None for p in every)
