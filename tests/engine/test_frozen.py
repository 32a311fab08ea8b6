"""Parameters that leave the model, are frozen midway, or are not reached by a batch; by hand, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import lowland
from lowland import L2, SAM, Batched, Criterion, Engine, Layerwise, SAMPa
from lowland.core.errors import ParameterError
from lowland.methods import METHODS, make


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)).double()


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, generator=generator, dtype=torch.float64), torch.arange(8) % 2


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def criterion(logits, batch):
    return nn.functional.cross_entropy(logits, batch[1], reduction="none")


in_parts = Criterion(lambda model, batch: model(batch[0]), criterion)


def engine_of(method, model=None, **options):
    model = model or network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    loss = in_parts if isinstance(method, lowland.FunctionalSAM) else loss_fn
    return Engine(method, model, optimizer, loss, **options), model, optimizer


def step(engine, seed):
    engine.backward(batch(seed))
    engine.optimizer.step()
    engine.optimizer.zero_grad()


def assign(model):
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)


def swap(model):
    model[3] = nn.Linear(4, 2).double()


def weight_norm(model):
    parametrizations.weight_norm(model[0])


def replace(model):
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def remove(model):
    model[0].bias = None


LOST = [assign, swap, weight_norm, replace, remove]


@pytest.mark.parametrize("change", LOST)
@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_parameters_that_are_no_longer_the_model_s_are_refused(change, steps):
    engine, model, _ = engine_of(SAM())
    for i in range(steps):
        step(engine, i)
    change(model)
    with pytest.raises(ParameterError, match=r"must stay those .* no longer the same tensor .* make a new Engine"):
        engine.backward(batch(9))
    assert engine.step == steps


@pytest.mark.parametrize("steps", [0, 3])
def test_groups_are_compared_by_identity(steps):
    engine, model, optimizer = engine_of(SAM())
    for i in range(steps):
        step(engine, i)
    assign(model)
    optimizer.param_groups[0]["params"] = list(model.parameters())  # as many as before
    with pytest.raises(ParameterError, match="make a new Engine"):
        engine.backward(batch(9))


def test_the_same_parameters_in_another_place_are_fine():
    engine, model, optimizer = engine_of(SAM())
    twin = copy.deepcopy(model)
    other, _, _ = engine_of(SAM(), twin)
    for i in range(3):
        step(engine, i)
        step(other, i)
    model[3] = nn.Sequential(model[3])  # wrapped: the tensors are the same
    optimizer.load_state_dict(optimizer.state_dict())  # new groups of the same tensors
    for i in range(3, 7):
        step(engine, i)
        step(other, i)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


# Frozen midway

TEXTS = {
    **{key: key for key in METHODS if key not in ("ae-sam", "late", "adasam", "ausam", "esam", "k-sam")},
    "ae-sam": "ae-sam:total=10,l1=-inf,l2=-inf",
    "late": "late:start=0,inner=sam",
    "looksam": "looksam:k=3",
    "looksam-tensor": "looksam:k=3,decomposition=tensor",
    "layerwise": "sam:geometry=layerwise",
    "spectral": "sam:geometry=spectral",
    "k-sam": "k-sam:k=4",
    "esam": "esam",
    "sl-sam": "sl-sam:s=0.7",
    "micro-sam": "micro-sam:m=4",
    "vsam": "vsam:window=3",
    "sampa-raw": "sampa:lookahead=raw",
}


class Seen:
    """Notes the first layer's weights in every pass, and the size of the others' displacement."""

    def __init__(self, model):
        self.base = [p.detach().clone() for p in model.parameters()]
        self.first, self.rest = [], []

    def forward(self, model, batch):
        moved = [p.detach() - b for p, b in zip(model.parameters(), self.base, strict=True)]
        self.first += [float(m.abs().max()) for m in moved[:2]]
        self.rest.append(float(torch.cat([m.reshape(-1) for m in moved[2:]]).norm()))
        return model(batch[0])


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_what_is_frozen_midway_is_not_perturbed_and_keeps_weights_and_grad(text):
    method = make(text)
    engine, model, optimizer = engine_of(method)
    seen = None
    watched = Criterion(lambda m, b: (seen or in_parts).forward(m, b), criterion)
    engine.loss_fn = engine.work.loss_fn = watched
    for i in range(4):
        step(engine, i)
    model[0].requires_grad_(False)
    mark = torch.full_like(model[0].bias, 7.0)
    model[0].bias.grad = mark
    weights = [p.detach().clone() for p in model[0].parameters()]
    for i in range(4, 8):
        seen = Seen(model)
        engine.backward(batch(i))
        assert max(seen.first) == 0
        assert model[0].weight.grad is None
        assert model[0].bias.grad is mark
        assert torch.equal(mark, torch.full_like(mark, 7.0))
        model[0].bias.grad = None
        optimizer.step()
        optimizer.zero_grad()
        model[0].bias.grad = mark
        if text in ("sam", "momentum-sam", "async-sam:share=1", "friendly-sam", "wsam", "functional-sam"):
            assert max(seen.rest) == pytest.approx(method.rho, rel=1e-10)  # the norm is that of the others alone
    assert all(torch.equal(p, w) for p, w in zip(model[0].parameters(), weights, strict=True))


def test_looksam_reuses_a_direction_of_length_1_among_what_is_trained():
    engine, model, _ = engine_of(lowland.LookSAM(k=10, alpha=0.5))
    step(engine, 0)
    model[0].requires_grad_(False)
    engine.backward(batch(1))
    rest = list(model.parameters())[2:]
    found = [p.grad.clone() for p in rest]
    plain = torch.autograd.grad(loss_fn(model, batch(1)).mean(), rest)
    apart = torch.stack([(f - g).square().sum() for f, g in zip(found, plain, strict=True)]).sum().sqrt()
    size = torch.stack([g.square().sum() for g in plain]).sum().sqrt()
    assert float(apart) == pytest.approx(0.5 * float(size), rel=1e-10)


def test_batched_probes_leave_what_is_frozen_midway():
    results = []
    for executor in (None, Batched(2)):
        engine, model, _ = engine_of(SAMPa(), executor=executor)
        for i in range(2):
            step(engine, i)
        model[0].requires_grad_(False)
        for i in range(2, 5):
            step(engine, i)
        results.append(list(model.parameters()))
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)  # sums in another order


def test_unfreezing_what_was_frozen_at_the_start_stays_refused():
    model = network()
    model[0].requires_grad_(False)
    engine, _, _ = engine_of(SAM(), model)
    step(engine, 0)
    model[0].requires_grad_(True)
    with pytest.raises(ParameterError, match="unfrozen since; make a new Engine"):
        step(engine, 1)


# Parameters that a batch does not reach


class Heads(nn.Module):
    """One body, and a head for each of two kinds of batches."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(3, 4)
        self.heads = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])
        self.double()

    def forward(self, x, kind):
        return self.heads[kind](torch.tanh(self.body(x)))


def heads_loss(model, batch):
    return model(batch[0], int(batch[1][0])).square().sum(1)


def heads_batch(i):
    generator = torch.Generator().manual_seed(i)
    return torch.randn(4, 3, generator=generator, dtype=torch.float64), torch.full((4,), i % 2)


OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.05, weight_decay=0.1),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.01, momentum=0.9, weight_decay=0.1),
}


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_sampa_s_preview_leaves_what_the_last_batch_did_not_reach(make_optimizer):
    """Two implementations of lam=0.2, one by hand with a real step of a copy of model and optimizer as preview."""
    rho, lam = 0.1, 0.2
    model, theirs = Heads(), Heads()
    optimizer, twin = make_optimizer(model.parameters()), make_optimizer(theirs.parameters())
    engine = Engine(SAMPa(rho=rho, lam=lam), model, optimizer, heads_loss)
    params = list(theirs.parameters())

    def gradient(at, batch):
        saved = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, a in zip(params, at, strict=True):
                p.add_(a)
        found = torch.autograd.grad(heads_loss(theirs, batch).mean(), params, allow_unused=True)
        with torch.no_grad():
            for p, s in zip(params, saved, strict=True):
                p.copy_(s)
        return found

    held, grad_y = None, None
    for i in range(7):
        now = heads_batch((0, 1, 1, 0, 0, 1, 0)[i] + 2 * i)
        engine.backward(now)
        if held is None:
            tilde = y = gradient([torch.zeros_like(p) for p in params], now)
        else:
            copied, preview = copy.deepcopy((theirs, twin))
            before = [p.detach().clone() for p in copied.parameters()]
            for p, g in zip(copied.parameters(), grad_y, strict=True):
                p.grad = None if g is None else g.clone()
            preview.step()
            move = [p.detach() - b for p, b in zip(copied.parameters(), before, strict=True)]
            size = torch.stack([g.square().sum() for g in grad_y if g is not None]).sum().sqrt()
            up = [torch.zeros_like(p) if g is None else rho * g / size for p, g in zip(params, grad_y, strict=True)]
            tilde, y = gradient(up, held), gradient(move, now)
        for p, a, b in zip(params, tilde, y, strict=True):
            full = [torch.zeros_like(p) if g is None else g for g in (a, b)]
            p.grad = None if a is None and b is None else (1 - lam) * full[0] + lam * full[1]
        held, grad_y = now, y
        for o in (optimizer, twin):
            o.step()
            o.zero_grad()
        for p, q in zip(model.parameters(), params, strict=True):
            # A preview is a difference of weights, whose rounding RMSprop's small roots enlarge.
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)


def test_layerwise_and_l2_radii_of_frozen_tensors_are_zero():
    engine, model, _ = engine_of(SAM())
    model[0].requires_grad_(False)
    step(engine, 0)
    for geometry in (L2(), Layerwise()):
        assert engine.radii(0.3, geometry) == [0.0, 0.0, 0.3, 0.3, 0.3, 0.3]
