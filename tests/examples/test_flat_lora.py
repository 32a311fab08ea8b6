"""Flat-LoRA's example against its rule by hand: noise added to the frozen weights, and subtracted again."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowland
from lowland.planner.memory import LiveTensors

PATH = Path(__file__).parents[2] / "examples" / "flat_lora.py"
STEPS, RHO, S = 6, 0.4, 2.0


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(PATH))


def network(example: dict[str, Any], width: int = 5, depth: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [example["LoRALinear"](nn.Linear(width, width), rank=2, seed=k, rho=RHO, s=S) for k in range(depth)]
    model = nn.Sequential(*[m for layer in layers for m in (layer, nn.Tanh())]).double()
    for layer in layers:
        nn.init.normal_(layer.B, std=0.1)
    return model


def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum(1)


def by_hand(example: dict[str, Any], x: Tensor, method: str) -> list[Tensor]:
    """Plain or SAM training whose frozen weights carry the noise during the step."""
    model = network(example).eval()  # without the example's own noise
    layers = [m for m in model if isinstance(m, example["LoRALinear"])]
    adapters = [p for m in layers for p in (m.A, m.B)]
    optimizer = torch.optim.SGD(adapters, lr=0.1, momentum=0.9)
    for t in range(STEPS):
        added = []
        for k, m in enumerate(layers):
            merged = m.base.weight + S * (m.B @ m.A).detach()
            sizes = (1 - math.cos(math.pi * t / STEPS)) / 2 * RHO / math.sqrt(5) * merged.norm(dim=1)
            generator = torch.Generator().manual_seed(k + 7919 * t)
            added.append(sizes[:, None] * torch.randn(5, 5, generator=generator, dtype=torch.float64))
        for m, noise in zip(layers, added, strict=True):
            m.base.weight.data += noise
        grads = torch.autograd.grad(loss_fn(model, x).mean(), adapters)
        if method == "sam":
            norm = torch.cat([g.flatten() for g in grads]).norm()
            start = [p.detach().clone() for p in adapters]
            for p, g in zip(adapters, grads, strict=True):
                p.data += 0.1 * g / norm
            # the rows' sizes are those of the displaced adapters, since the engine computes them in its pass
            for k, (m, noise) in enumerate(zip(layers, added, strict=True)):
                m.base.weight.data -= noise
                merged = m.base.weight + S * (m.B @ m.A).detach()
                sizes = (1 - math.cos(math.pi * t / STEPS)) / 2 * RHO / math.sqrt(5) * merged.norm(dim=1)
                generator = torch.Generator().manual_seed(k + 7919 * t)
                added[k] = sizes[:, None] * torch.randn(5, 5, generator=generator, dtype=torch.float64)
                m.base.weight.data += added[k]
            grads = torch.autograd.grad(loss_fn(model, x).mean(), adapters)
            for p, w in zip(adapters, start, strict=True):
                p.data.copy_(w)
        for m, noise in zip(layers, added, strict=True):
            m.base.weight.data -= noise
        for p, g in zip(adapters, grads, strict=True):
            p.grad = g
        optimizer.step()
    return [p.detach() for p in adapters]


@pytest.mark.parametrize(("text", "method"), [("plain", lowland.Plain()), ("sam", lowland.SAM(rho=0.1))])
def test_it_follows_the_rule(example: dict[str, Any], text: str, method: lowland.Method) -> None:
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = network(example)
    layers = [m for m in model if isinstance(m, example["LoRALinear"])]
    frozen = [p.clone() for p in model.parameters() if not p.requires_grad]
    adapters = [p for m in layers for p in (m.A, m.B)]
    optimizer = torch.optim.SGD(adapters, lr=0.1, momentum=0.9)
    engine = lowland.Engine(method, model, optimizer, loss_fn)
    for t in range(STEPS):
        for m in layers:
            m.step, m.progress = t, t / STEPS
        engine.backward(x)
        optimizer.step()
        optimizer.zero_grad()
    for p, wanted in zip(adapters, by_hand(example, x, text), strict=True):
        torch.testing.assert_close(p.detach(), wanted, rtol=1e-12, atol=1e-12)
    assert all(map(torch.equal, frozen, [p for p in model.parameters() if not p.requires_grad]))


@pytest.mark.parametrize("method", [lowland.Plain(), lowland.SAM()], ids=["plain", "sam"])
def test_memory_scales_with_the_trainable_part(example: dict[str, Any], method: lowland.Method) -> None:
    """A step holds the noise of one layer of sixteen, and nothing else of the size of the frozen weights."""
    model = network(example, width=128, depth=16)
    engine = lowland.Engine(method, model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad]), loss_fn)
    x = torch.randn(1, 128, dtype=torch.float64)
    one_layer = 128 * 128 * 8
    for _ in range(3):
        engine.backward(x)
        engine.optimizer.zero_grad()
    with LiveTensors() as meter:
        for _ in range(3):
            engine.backward(x)
            engine.optimizer.zero_grad()
    assert meter.peak < 3.5 * one_layer  # noise, its product with the rows' sizes or a square of W, and adapters


def test_it_trains(example: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    for method in (None, lowland.SAM()):
        losses = example["main"](steps=25, method=method)
        assert losses[-1] < 0.9 * losses[0]
    assert "after 25 steps" in capsys.readouterr().out
