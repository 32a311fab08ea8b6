"""The methods that choose examples, tensors or steps follow their numpy twins: whole trajectories, weight by weight."""

from __future__ import annotations

import math

import numpy as np
import pytest
from reference import ae_sam, async_sam, ausam, esam, geometry, k_sam, sl_sam
from reference.follow import BASES, assert_follows
from reference.sampling import Indexed

from lowland import AESAM, AUSAM, ESAM, KSAM, SLSAM, AsyncSAM
from lowland.core.geometry import Adaptive, Layerwise

EXAMPLES = 20


def pair(method, twin, **fields):
    return method(**fields), twin, fields


def adaptive(method, twin, **fields):
    return method(**fields, geometry=Adaptive()), twin, {**fields, "geometry": geometry.adaptive()}


PAIRS = {
    "k-sam": pair(KSAM, k_sam.KSAM, rho=0.1),
    "k-sam-third": pair(KSAM, k_sam.KSAM, rho=0.1, k=0.34),
    "k-sam-count": pair(KSAM, k_sam.KSAM, rho=0.1, k=9),  # the whole of some batches
    "k-sam-adaptive": adaptive(KSAM, k_sam.KSAM, rho=0.5),
    "esam": pair(ESAM, esam.ESAM, rho=0.1),
    "esam-few": pair(ESAM, esam.ESAM, rho=0.1, beta=0.2, gamma=0.3),
    "esam-mask-alone": pair(ESAM, esam.ESAM, rho=0.1, gamma=1),
    "esam-examples-alone": pair(ESAM, esam.ESAM, rho=0.1, beta=1),
    "esam-element": pair(ESAM, esam.ESAM, rho=0.1, mask="element"),
    "esam-element-alone": pair(ESAM, esam.ESAM, rho=0.1, mask="element", gamma=1.0, beta=0.3),
    "esam-adaptive": adaptive(ESAM, esam.ESAM, rho=0.5),
    "esam-layerwise": (
        ESAM(rho=0.1, geometry=Layerwise()),
        esam.ESAM,
        {"rho": 0.1, "geometry": geometry.layerwise},
    ),
    "ausam": pair(AUSAM, ausam.AUSAM, rho=0.1, examples=EXAMPLES),
    "ausam-phases": pair(AUSAM, ausam.AUSAM, rho=0.1, examples=EXAMPLES, alpha=0.3, fmax=1.0, ramp=9, warmup=2),
    "ausam-whole": pair(AUSAM, ausam.AUSAM, rho=0.1, examples=EXAMPLES, alpha=1),
    "sl-sam": pair(SLSAM, sl_sam.SLSAM, rho=0.1, s=0.5, alpha_p=0.2),
    "sl-sam-few": pair(SLSAM, sl_sam.SLSAM, rho=0.1),
    "sl-sam-all": pair(SLSAM, sl_sam.SLSAM, rho=0.1, s=1),
    "ae-sam": pair(AESAM, ae_sam.AESAM, rho=0.1, total=12),
    "ae-sam-quick": pair(AESAM, ae_sam.AESAM, rho=0.1, total=7, delta=0.5, l1=-2.0, l2=0.2),
    "ae-sam-lagged": pair(AESAM, ae_sam.AESAM, rho=0.1, total=12, lag=1),
    "ae-sam-never": pair(AESAM, ae_sam.AESAM, rho=0.1, total=12, l1=math.inf, l2=math.inf),
    "async-sam": pair(AsyncSAM, async_sam.AsyncSAM, rho=0.1),
    "async-sam-whole": pair(AsyncSAM, async_sam.AsyncSAM, rho=0.1, share=1),
    "async-sam-waiting": pair(AsyncSAM, async_sam.AsyncSAM, rho=0.1, share=0.4, tau=0),
    "async-sam-adaptive": adaptive(AsyncSAM, async_sam.AsyncSAM, rho=0.5),
}


def options_of(key):
    return {"problem": Indexed(examples=EXAMPLES)} if key.startswith("ausam") else {}


@pytest.mark.parametrize("base_key", BASES)
@pytest.mark.parametrize("key", PAIRS)
def test_follows_its_twin(key, base_key):
    assert_follows(*PAIRS[key], base_key, **options_of(key))


@pytest.mark.parametrize("key", ["k-sam", "esam", "esam-element", "ausam", "sl-sam", "ae-sam", "async-sam"])
def test_groups_with_their_own_rho(key):
    method, twin_class, fields = PAIRS[key]
    rhos, options = [0.3, 0.0, 0.1, 0.3], options_of(key)
    if key == "esam":  # with seed 0 a step perturbs nothing: no loss rises, and any half of the examples will do
        fields, options = {**fields, "seed": 1}, {"seed": 1}

    def groups(model):
        return [{"params": [p], "rho": rho} for p, rho in zip(model.parameters(), rhos, strict=True)]

    assert_follows(method, twin_class, {**fields, "rho": rhos}, "momentum", groups=groups, **options)


@pytest.mark.parametrize("key", ["esam", "esam-element", "ausam", "sl-sam"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_draws_follow_the_seed(key, seed):
    method, twin_class, fields = PAIRS[key]
    fields = {**fields, "seed": seed}
    assert_follows(method, twin_class, fields, "momentum", steps=20, seed=seed, **options_of(key))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("base_key", ["momentum", "adamw"])
def test_ausam_s_scores_follow_for_long(seed, base_key):
    fields = {"rho": 0.1, "examples": EXAMPLES, "alpha": 0.4, "fmin": 0.05, "fmax": 1.0, "ramp": 30, "warmup": 3}
    run, twin = assert_follows(
        AUSAM(**fields),
        ausam.AUSAM,
        {**fields, "seed": seed},
        base_key,
        steps=60,
        problem=Indexed(examples=EXAMPLES),
        seed=seed,
    )
    np.testing.assert_allclose(run.engine.memory["sums"].numpy(), twin.sums, rtol=1e-9)
    np.testing.assert_array_equal(run.engine.memory["counts"].numpy(), twin.counts)
    # the ramp has spread the chances to where they make a difference
    assert twin.spread[0] < 3
    assert max(twin.spread) == pytest.approx(20, rel=0.1)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("base_key", ["momentum", "adamw"])
def test_sl_sam_s_probabilities_follow_for_long(seed, base_key):
    fields = {"rho": 0.1, "s": 0.5, "alpha_p": 0.3}
    run, twin = assert_follows(SLSAM(**fields), sl_sam.SLSAM, {**fields, "seed": seed}, base_key, steps=60, seed=seed)
    np.testing.assert_allclose(run.engine.memory["p"], twin.p, rtol=1e-6)  # (L/p_min)^2 may cost six digits
    assert run.engine.memory["drawn"]["active"] == twin.draws[-1]
    assert max(twin.p) > 0.6  # they have moved apart, and some tensors are drawn more often
    assert min(twin.p) < 0.4
    assert len({tuple(draw) for draw in twin.draws}) > 4


@pytest.mark.parametrize(
    "fields", [{}, {"delta": 0.7, "l1": -0.5, "l2": 0.5}, {"delta": 0.0}, {"delta": 1.0}, {"lag": 1}]
)
@pytest.mark.parametrize("base_key", ["momentum", "adamw"])
def test_ae_sam_s_choices_follow_for_long(fields, base_key):
    fields = {"rho": 0.1, "total": 60, **fields}
    run, twin = assert_follows(AESAM(**fields), ae_sam.AESAM, fields, base_key, steps=70)
    assert run.engine.cost.probes == 70 + sum(twin.choices)
    assert run.engine.memory["mean"] == pytest.approx(twin.mean, rel=1e-9)
    assert run.engine.memory["var"] == pytest.approx(twin.var, rel=1e-9)
    assert 5 < sum(twin.choices) < 65
