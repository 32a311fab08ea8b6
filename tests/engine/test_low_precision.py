"""Parameters in bf16 and fp16: displaced on average by what the method wants, and restored bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from low_precision import every_dtype, inputs, squares, wide_layer
from problems import loss_fn, net, same, sgd, weights
from torch import Tensor, nn

import lowland


def wanted(model: nn.Module, x: Tensor, rho: float) -> list[Tensor]:
    """SAM's displacement by hand, in float64, along torch's own gradient."""
    grads = [g.double() for g in torch.autograd.grad(squares(model, x).mean(), list(model.parameters()))]
    norm = torch.cat([g.flatten() for g in grads]).norm()
    return [rho * g / norm for g in grads]


def displacements(engine: lowland.Engine, x: Tensor, count: int) -> list[Tensor]:
    """The displacements of the second passes of ``count`` steps, flat."""
    found = []
    for _ in range(count):
        start = [p.detach().double() for p in engine.params]
        for p in engine.passes(x):
            with p:
                moved = [q.detach().double() - s for q, s in zip(engine.params, start, strict=True)]
                p.backward(squares(engine.model, p.batch))
        found.append(torch.cat([m.flatten() for m in moved]))
        engine.optimizer.zero_grad()
    return found


@every_dtype
@pytest.mark.parametrize("rho", [0.05, 1e-3, 2e-4])
def test_the_mean_displacement_is_the_method_s_within_two_per_cent(dtype: torch.dtype, rho: float) -> None:
    model = wide_layer(dtype)
    before, x = weights(model), torch.randn(8, 256, generator=torch.Generator().manual_seed(1)).to(dtype)
    engine = lowland.Engine(lowland.SAM(rho=rho), model, sgd(model, lr=0.0), squares)
    e = torch.cat([t.flatten() for t in wanted(model, x, rho)])
    found = displacements(engine, x, 40)
    mean = torch.stack(found).mean(0)
    assert float(mean @ e / (e @ e)) == pytest.approx(1, abs=0.02)
    assert same(before, weights(model))
    if rho == 1e-3:  # the rounding's own noise
        assert float(found[0].norm() / e.norm()) == pytest.approx(5.7 if dtype is torch.bfloat16 else 2.0, rel=0.05)
    # Entries are unbiased, too: the mean of 40 draws is as near to e as one draw's spread over sqrt(40) says.
    spread = torch.stack(found).var(0).sum() / len(found)
    assert float((mean - e).square().sum()) < 1.1 * float(spread) + 1e-6 * float(e @ e)


def test_rounding_to_the_nearest_value_would_lose_it() -> None:
    model, rho = wide_layer(torch.bfloat16), 2e-4
    x = torch.randn(8, 256, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    e = wanted(model, x, rho)
    near = [
        (p.detach().double() + t).to(p.dtype).double() - p.detach().double()
        for p, t in zip(model.parameters(), e, strict=True)
    ]
    lost, full = torch.cat([n.flatten() for n in near]), torch.cat([t.flatten() for t in e])
    assert float(lost @ full / (full @ full)) < 0.02


def test_autocast_keeps_the_displacement_of_fp32_weights_on_average() -> None:
    """docs/surroundings.md: fp32 weights lie anywhere between two values of bf16, so rounding keeps e on average."""
    shares, lengths = [], []
    for seed in range(5):
        torch.manual_seed(seed)
        model, x = nn.Linear(256, 256), torch.randn(8, 256)
        pairs = zip(model.parameters(), wanted(model, x, 1e-3), strict=True)
        pairs = [((w.detach() + e).bfloat16().double() - w.detach().bfloat16().double(), e) for w, e in pairs]
        seen, full = (torch.cat([t.flatten() for t in v]) for v in zip(*pairs, strict=True))
        shares.append(float(seen @ full / (full @ full)))
        lengths.append(float(seen.norm() / full.norm()))
    assert sum(shares) / 5 == pytest.approx(1, abs=0.02)
    assert sum(lengths) / 5 == pytest.approx(5.7, rel=0.05)


@every_dtype
def test_sam_by_hand(dtype: torch.dtype) -> None:
    """Each weight moves to a neighbour of w + e, and the gradient is torch's own there, bit for bit."""
    model = net(dtype=dtype)
    optimizer = sgd(model)
    engine = lowland.Engine(lowland.SAM(rho=0.05), model, optimizer, loss_fn)
    for step in range(4):
        twin, x = copy.deepcopy(model), inputs(step, dtype)
        there: list[Tensor] = []
        for p in engine.passes(x):
            with p:
                there = [q.detach().clone() for q in engine.params]
                p.backward(loss_fn(model, p.batch))
        grads = [g.double() for g in torch.autograd.grad(loss_fn(twin, x).mean(), list(twin.parameters()))]
        norm = torch.cat([g.flatten() for g in grads]).norm()
        for q, w, g in zip(there, twin.parameters(), grads, strict=True):
            target = w.detach().double() + 0.05 * g / norm
            # one step of the dtype: 2^-7 of the value in bf16 and 2^-10 in fp16, and 2^-24 among fp16's smallest
            step_size = target.abs().clamp_min(w.detach().double().abs()) * torch.finfo(dtype).eps + 2.0**-24
            assert bool(((q.double() - target).abs() <= step_size * 1.001).all())
        with torch.no_grad():
            for w, q in zip(twin.parameters(), there, strict=True):
                w.copy_(q)
        expected = torch.autograd.grad(loss_fn(twin, x).mean(), list(twin.parameters()))
        assert same([p.grad for p in engine.params], list(expected))
        optimizer.step()
        optimizer.zero_grad()
