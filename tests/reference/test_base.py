"""The numpy optimizers follow torch's own, step by step."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from reference.base import SGD, Adam, adamw
from reference.model import MLP, fill

PAIRS = {
    "sgd": (SGD(), torch.optim.SGD, {}),
    "momentum": (
        SGD(momentum=0.9, weight_decay=5e-4),
        torch.optim.SGD,
        {"momentum": 0.9, "weight_decay": 5e-4},
    ),
    "dampening": (
        SGD(momentum=0.9, dampening=0.3),
        torch.optim.SGD,
        {"momentum": 0.9, "dampening": 0.3},
    ),
    "nesterov": (
        SGD(momentum=0.9, nesterov=True, weight_decay=1e-2),
        torch.optim.SGD,
        {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-2},
    ),
    "maximize": (
        SGD(momentum=0.5, weight_decay=1e-2, maximize=True),
        torch.optim.SGD,
        {"momentum": 0.5, "weight_decay": 1e-2, "maximize": True},
    ),
    "adam": (Adam(weight_decay=1e-2), torch.optim.Adam, {"weight_decay": 1e-2}),
    "adam-maximize": (Adam(maximize=True), torch.optim.Adam, {"maximize": True}),
    "amsgrad": (
        Adam(amsgrad=True, betas=(0.5, 0.6)),
        torch.optim.Adam,
        {"amsgrad": True, "betas": (0.5, 0.6)},
    ),
    "adamw": (adamw(0.1), torch.optim.AdamW, {"weight_decay": 0.1}),
}
LRS = [0.1, 0.05, 0.2, 0.02, 0.0, 0.1, 0.3, 0.01, 0.1, 0.1]


@pytest.mark.parametrize("key", PAIRS)
def test_steps_as_torch_does(key):
    twin, kind, options = PAIRS[key]
    base, rng = copy.deepcopy(twin), np.random.default_rng(3)
    w = MLP().weights()
    model = MLP().module(w)
    optimizer = kind(model.parameters(), lr=0.1, **options)
    for lr in LRS:
        g = [rng.normal(size=p.shape) for p in w]
        for p, x in zip(model.parameters(), g, strict=True):
            p.grad = torch.from_numpy(x.copy())
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        w = base.step(w, g, lr)
        for p, x in zip(model.parameters(), w, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), x, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("key", PAIRS)
def test_skips_tensors_without_gradient_as_torch_does(key):
    twin, kind, options = PAIRS[key]
    base, rng = copy.deepcopy(twin), np.random.default_rng(5)
    w = MLP().weights()
    model = MLP().module(w)
    optimizer = kind(model.parameters(), lr=0.1, **options)
    for t, lr in enumerate(LRS):
        # the first tensor starts late, the second pauses, the third comes and goes, the last is never stepped
        there = [t >= 3, t not in (2, 3), rng.random() < 0.5, False]
        g = [rng.normal(size=p.shape) if here else None for p, here in zip(w, there, strict=True)]
        for p, x in zip(model.parameters(), g, strict=True):
            p.grad = None if x is None else torch.from_numpy(x.copy())
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        w = base.step(w, g, lr)
        for p, x in zip(model.parameters(), w, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), x, rtol=1e-13, atol=1e-14)
    np.testing.assert_array_equal(w[3], MLP().weights()[3])


@pytest.mark.parametrize("key", PAIRS)
def test_preview_is_the_step_not_taken(key):
    base, rng = copy.deepcopy(PAIRS[key][0]), np.random.default_rng(4)
    w = MLP().weights()
    for lr in LRS[:4]:
        g = [rng.normal(size=p.shape) for p in w]
        before = repr(base)
        ahead = base.preview(w, g, lr)
        assert repr(base) == before
        after = base.step(w, g, lr)
        for d, x, y in zip(ahead, w, after, strict=True):
            np.testing.assert_array_equal(d, y - x)
        w = after


def test_fill_goes_in_order():
    w = MLP().weights(5)
    for p, x in zip(fill(MLP().module(MLP().weights(6)), w).parameters(), w, strict=True):
        np.testing.assert_array_equal(p.detach().numpy(), x)
