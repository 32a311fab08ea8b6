"""D1: AdaSAM is SAM's gradient in AMSGrad's moments; ASAM is SAM in an adaptive ball. Both change defaults only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference.cases import BASES, LRS, PROBLEM, path_of, some
from reference.drive import Run, assert_differ, assert_same, trajectory
from reference.vectors import add, norm, scale, zeros

from lowland import ASAM, SAM, AdaSAM, Engine
from lowland.core.geometry import L2, Adaptive

BETAS = (0.9, 0.99)


def amsgrad(rho, batches, lrs):
    """The paper's loop: no bias correction, no eps beside the root."""
    b1, b2 = BETAS
    x = PROBLEM.weights(1)
    m, v, most, path = zeros(x), zeros(x), zeros(x), []
    for batch, lr in zip(batches, lrs, strict=True):
        g = PROBLEM.gradient(x, batch)
        if rho:
            g = PROBLEM.gradient(add(x, g, rho / norm(g)), batch)
        m = add(scale(m, b1), g, 1 - b1)
        v = add(scale(v, b2), [y * y for y in g], 1 - b2)
        most = [np.maximum(y, z) for y, z in zip(most, v, strict=True)]
        x = [y - lr * z / np.sqrt(u) for y, z, u in zip(x, m, most, strict=True)]
        path.append(x)
    return path


@pytest.mark.parametrize("rho", [0.0, 0.2])
def test_d1_on_amsgrad_it_is_the_paper_s_loop(rho):
    def adam(params):
        return torch.optim.Adam(params, lr=0.1, betas=BETAS, amsgrad=True, eps=1e-30)

    lrs = [0.1 * lr for lr in LRS]
    run = Run(PROBLEM, PROBLEM.weights(1), AdaSAM(rho=rho), adam)
    undone = [lr * (1 - BETAS[0] ** t) / np.sqrt(1 - BETAS[1] ** t) for t, lr in enumerate(lrs, start=1)]
    # the first steps divide by the root of a single square, which magnifies rounding of small gradients
    assert_same(trajectory(run, some(), undone), amsgrad(rho, some(), lrs), 1e-9)


def test_d1_as_torch_corrects_the_bias_it_is_another_loop():
    def adam(params):
        return torch.optim.Adam(params, lr=0.1, betas=BETAS, amsgrad=True, eps=1e-30)

    lrs = [0.1 * lr for lr in LRS]
    run = Run(PROBLEM, PROBLEM.weights(1), AdaSAM(rho=0.2), adam)
    assert_differ(trajectory(run, some(), lrs), amsgrad(0.2, some(), lrs))


@pytest.mark.parametrize("base", ["sgd"])
def test_adasam_is_sam_on_sgd(base):
    path = path_of(AdaSAM(rho=0.2), some(), optimizer=BASES[base])
    assert_same(path, path_of(SAM(rho=0.2), some(), optimizer=BASES[base]), 0.0)
    assert AdaSAM() == AdaSAM(rho=0.05, geometry=L2())


@pytest.mark.parametrize("base", BASES)
def test_asam_is_sam_in_an_adaptive_ball(base):
    path = path_of(ASAM(), some(), optimizer=BASES[base])
    expected = path_of(SAM(rho=0.5, geometry=Adaptive(eta=0.01)), some(), optimizer=BASES[base])
    assert_same(path, expected, 0.0)
    assert_differ(path, path_of(SAM(rho=0.5), some(), optimizer=BASES[base]))


def test_asam_does_not_feel_how_a_network_is_scaled():
    """tanh aside: in a linear network W2 W1, (c W1, W2 / c) is the same function and the same perturbed loss."""
    losses = []
    for c in (1.0, 8.0):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 5, bias=False), torch.nn.Linear(5, 2, bias=False)).double()
        with torch.no_grad():
            model[0].weight.mul_(c)
            model[1].weight.div_(c)
        seen = []

        def loss_fn(model, batch, seen=seen):
            loss = (model(batch[0]) - batch[1]).square().mean(1)
            seen.append(loss.mean().item())
            return loss

        engine = Engine(ASAM(geometry=Adaptive(eta=0.0)), model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn)
        draw = torch.Generator().manual_seed(1)
        inputs, targets = (torch.randn(6, n, generator=draw, dtype=torch.float64) for n in (4, 2))
        engine.backward((inputs, targets))
        losses.append(seen)
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert losses[0][1] > losses[0][0]


def test_both_differ_from_sam_as_values():
    assert ASAM(rho=0.05, geometry=L2()) != SAM() != AdaSAM()
