"""R1, and the coin that RST throws. Bit for bit throughout: RST only decides."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from reference.cases import BASES, MOMENTUM, PROBLEM, path_of, probes, rates, some
from reference.drive import Run, assert_same, trajectory

from lowland import RST, SAM, Plain
from lowland.core.errors import ArgumentError
from lowland.core.geometry import Adaptive


@pytest.mark.parametrize("base", BASES)
def test_r1_always_it_is_sam_and_never_the_base_optimizer(base):
    always, never = (path_of(RST(rho=0.2, s=s), some(), optimizer=BASES[base]) for s in (1.0, 0.0))
    assert_same(always, path_of(SAM(rho=0.2), some(), optimizer=BASES[base]), 0.0)
    assert_same(never, path_of(Plain(), some(), optimizer=BASES[base]), 0.0)


def test_r1_in_another_geometry():
    path = path_of(RST(rho=0.5, s=1, geometry=Adaptive()), some())
    assert_same(path, path_of(SAM(rho=0.5, geometry=Adaptive()), some()), 0.0)


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("s", [0.2, 0.5, 0.9])
def test_one_number_is_drawn_for_every_step_before_it_asks(s, seed):
    rng = random.Random(seed)
    run = Run(PROBLEM, PROBLEM.weights(1), RST(s=s), seed=seed)
    asked = list(probes(run, some(30)))
    assert asked == [2 if rng.random() < s else 1 for _ in range(30)]
    assert len(set(asked)) == 2
    assert run.engine.rng.random() == rng.random()


@pytest.mark.parametrize("stop", [1, 6])
def test_a_resumed_run_throws_the_same_coins(stop):
    batches, lrs = some(14), rates(14)
    whole = Run(PROBLEM, PROBLEM.weights(1), RST(rho=0.2), MOMENTUM, seed=3)
    trajectory(whole, batches[:stop], lrs[:stop])
    file = io.BytesIO()
    torch.save([whole.engine.state_dict(), whole.optimizer.state_dict()], file)
    resumed = Run(PROBLEM, whole.w, RST(rho=0.2), MOMENTUM, seed=99)
    file.seek(0)
    engine, optimizer = torch.load(file, weights_only=True)
    resumed.engine.load_state_dict(engine)
    resumed.optimizer.load_state_dict(optimizer)
    expected = trajectory(whole, batches[stop:], lrs[stop:])
    assert_same(trajectory(resumed, batches[stop:], lrs[stop:]), expected, 0.0)


def test_a_step_that_fails_throws_its_coin_again():
    def failing(model, batch):
        if np.isnan(float(batch[0][0, 0])):
            raise RuntimeError("broken batch")
        return PROBLEM.loss_fn(model, batch)

    one, other = (Run(PROBLEM, PROBLEM.weights(1), RST(rho=0.2), MOMENTUM, loss_fn=failing) for _ in range(2))
    broken = PROBLEM.batch(0)
    broken[0][0, 0] = np.nan
    for batch in some(8):
        with pytest.raises(RuntimeError, match="broken batch"):
            other.step(broken, 0.1)
        one.step(batch, 0.1)
        other.step(batch, 0.1)
        assert_same([one.w], [other.w], 0.0)


@pytest.mark.parametrize("s", [-0.1, 1.1, float("nan"), None, True])
def test_bad_s_is_refused(s):
    with pytest.raises(ArgumentError, match=rf"s must be in \[0, 1\], but is {s!r}; 1 is SAM, 0 the base optimizer"):
        RST(s=s)
