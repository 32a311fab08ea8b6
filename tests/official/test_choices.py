"""What releases measured and chose by: AUSAM's table and chances, SL-SAM's probabilities, vSAM's norms.

Both sides compute in float64 on weights that agree to 1e-12 or better: 1e-9, relative.
"""

from __future__ import annotations

import math
from unittest import mock

import numpy as np
import pytest
import torch

from official.files import names, recorded
from official.follow import Follower
from official.methods import altered, method_of

CLOSE = {"rtol": 1e-9, "atol": 1e-12}


@pytest.mark.parametrize("name", ["ausam_mlp_sgd", "ausam_bn_adamw"])
def test_ausam_s_table(name: str) -> None:
    run = recorded(name)
    memory = Follower(run).go().engine.memory
    np.testing.assert_array_equal(memory["counts"], run.arrays["counts"])
    np.testing.assert_allclose(memory["sums"] / memory["counts"], run.arrays["scores"], **CLOSE)


@pytest.mark.parametrize("name", ["ausam_mlp_sgd", "ausam_bn_adamw"])
def test_ausam_s_chances(name: str) -> None:
    """Where f agrees: at the start of each epoch of the ramp, within which only lowland's rises, and after it.

    The release adds 1e-9 to f, so chances agree to 1e-8.
    """
    run = recorded(name)
    method, chances = method_of(run), {}

    def draw(self, engine, index, count, t):
        def keep(values, count):
            chances[t] = values / values.sum()
            return topk(values, count)

        def certain(shape, **options):  # -log1p(-u) = 1, so that chances stand alone
            return torch.full(shape, 1 - math.exp(-1), dtype=options["dtype"])

        topk = torch.topk
        with mock.patch.object(torch, "rand", certain), mock.patch.object(torch, "topk", keep):
            super(type(method), self)._draw(engine, index, count, t)
        return method._draw(engine, index, count, t)

    Follower(run, altered(method, _draw=draw)).go()
    told = run.meta["method"]
    rise = [min(t / method.ramp, 1) * (told["fmax"] - told["fmin"]) + told["fmin"] for t in range(run.steps)]
    same = [t for t in chances if math.isclose(rise[t], run.arrays["fmax"][t], abs_tol=1e-8)]
    assert same == [6, 12, *range(18, 48)]
    for t in same:
        np.testing.assert_allclose(chances[t], run.arrays["probs"][t], rtol=1e-8)


@pytest.mark.parametrize("name", ["sl_sam_s0.5_mlp_sgd", "sl_sam_s0.5_bn_adamw"])
def test_sl_sam_s_probabilities(name: str) -> None:
    """lowland's rule, given the release's probabilities, finds the next ones; on its own it is a step later."""
    run = recorded(name)
    method, steps = method_of(run), []
    drawn, probs = run.arrays["active"], run.arrays["probs"]

    def update(self, p, norms, active, chances):
        t = len(steps) + 1  # called from the second step on, with the norms of the step before
        assert active == drawn[t - 1].tolist()
        steps.append(t)
        found = super(type(self), self)._update(probs[t - 1].tolist(), norms, active, probs[t - 1].tolist())
        np.testing.assert_allclose(found, probs[t], **CLOSE)
        return found

    Follower(run, altered(method, _update=update)).go()
    assert len(steps) == run.steps - 1


def test_vsam_s_norms() -> None:
    """The norms of the last window's refreshes, all but the last one, which is read a refresh late."""
    run = recorded("vsam_mlp_sgd")
    memory = Follower(run).go().engine.memory
    norms = run.arrays["norms"][run.arrays["refresh"].astype(bool)][:-1][-50:]
    np.testing.assert_allclose(memory["sizes"], norms[:, 0], **CLOSE)
    np.testing.assert_allclose(memory["ratios"], norms[:, 0] / norms[:, 1], **CLOSE)


@pytest.mark.parametrize("name", [name for name in names() if name.startswith("xsam_dynamic")])
def test_xsam_s_choices_and_the_losses_they_rest_on(name: str) -> None:
    """The candidates' losses, by forward passes, and the factor in force in every step."""
    run = recorded(name)
    follower, found, losses = Follower(run), [], []
    averaged = follower.engine.averaged

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        losses.append(tensor.numpy())
        return averaged(tensor)

    follower.engine.averaged = keep  # type: ignore[method-assign]
    for step in range(run.steps):
        follower._step(step)
        found.append(float(follower.engine.memory["alpha"]))
    np.testing.assert_allclose(found, run.arrays["alpha"], rtol=1e-15)
    tolerance = 1e-7 if run.meta["model"] == "bn" else 1e-9
    np.testing.assert_allclose(np.stack(losses), run.arrays["search"], rtol=tolerance)
