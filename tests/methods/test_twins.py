"""Every method follows its numpy twin: whole trajectories, weight by weight."""

from __future__ import annotations

import numpy as np
import pytest
from reference import geometry, looksam, micro_sam, plain, sam, sampa, vsam
from reference.follow import BASES, PROBLEM, assert_follows

from lowland import ARSAM, SAM, VSAM, LookSAM, MicroSAM, Plain, SAMPa
from lowland.core.geometry import Adaptive, Layerwise

WINDOW = {"window": 6, "blocks": 2, "last": 2, "warmup": 3, "a1": 0.9, "a2": 0.5}

PAIRS = {
    "plain": (Plain(), plain.Plain, {}),
    "sam": (SAM(rho=0.1), sam.SAM, {"rho": 0.1}),
    "sam-adaptive": (
        SAM(rho=0.5, geometry=Adaptive(eta=0.02)),
        sam.SAM,
        {"rho": 0.5, "geometry": geometry.adaptive(0.02)},
    ),
    "sam-layerwise": (
        SAM(rho=0.1, geometry=Layerwise()),
        sam.SAM,
        {"rho": 0.1, "geometry": geometry.layerwise},
    ),
    **{
        f"sampa-{lam}-{lookahead}": (
            SAMPa(rho=0.2, lam=lam, lookahead=lookahead),
            sampa.SAMPa,
            {"rho": 0.2, "lam": lam, "lookahead": lookahead},
        )
        for lam in (0.0, 0.2, 1.0)
        for lookahead in ("base", "raw")
    },
    "sampa-adaptive": (
        SAMPa(rho=0.4, geometry=Adaptive()),
        sampa.SAMPa,
        {"rho": 0.4, "geometry": geometry.adaptive()},
    ),
    "looksam": (LookSAM(rho=0.1, k=3, alpha=0.7), looksam.LookSAM, {"rho": 0.1, "k": 3, "alpha": 0.7}),
    "looksam-layerwise": (
        LookSAM(rho=0.1, k=4, alpha=0.3, geometry=Layerwise()),
        looksam.LookSAM,
        {"rho": 0.1, "k": 4, "alpha": 0.3, "geometry": geometry.layerwise},
    ),
    "looksam-tensor": (
        LookSAM(rho=0.1, k=3, alpha=0.5, decomposition="tensor"),
        looksam.LookSAM,
        {"rho": 0.1, "k": 3, "alpha": 0.5, "decomposition": "tensor"},
    ),
    "micro-sam": (MicroSAM(rho=0.1, m=4), micro_sam.MicroSAM, {"rho": 0.1, "m": 4}),
    "vsam": (VSAM(rho=0.2, **WINDOW), vsam.VSAM, {"rho": 0.2, **WINDOW}),
    "arsam": (ARSAM(rho=0.2, **WINDOW), vsam.VSAM, {"rho": 0.2, **WINDOW}),
}


@pytest.mark.parametrize("base_key", BASES)
@pytest.mark.parametrize("key", PAIRS)
def test_follows_its_twin(key, base_key):
    assert_follows(*PAIRS[key], base_key)


def test_more_micro_batches_than_examples():
    assert_follows(MicroSAM(rho=0.1, m=10), micro_sam.MicroSAM, {"rho": 0.1, "m": 10}, "momentum")


@pytest.mark.parametrize("method", [VSAM, ARSAM])
@pytest.mark.parametrize("seed", [0, 1, 5])
def test_windows_follow_their_twin_for_long(method, seed):
    # rho is large so that the histories change much and the budget with them
    fields = {"rho": 0.4, "window": 8, "blocks": 3, "last": 3, "a1": 0.9, "a2": 0.9, "p_max": 0.75}
    fields["warmup"] = 6
    run, twin = assert_follows(method(**fields), vsam.VSAM, {**fields, "seed": seed}, "momentum", steps=64, seed=seed)
    assert run.engine.memory["s"] == pytest.approx(twin.s, rel=1e-9)
    assert len(set(twin.budgets)) >= 4
    assert len(set(map(int, twin.budgets))) >= 2
    assert run.engine.cost.probes == 64 + sum(twin.refreshes)


def test_windows_follow_their_twin_after_warmup():
    fields = {"rho": 0.3, "window": 6, "warmup": 9, "beta": 0.9}
    _, twin = assert_follows(VSAM(**fields), vsam.VSAM, fields, "adamw", steps=33)
    assert all(twin.refreshes[:9])
    assert not all(twin.refreshes[9:])


@pytest.mark.parametrize("key", ["sam", "sampa", "looksam", "micro-sam", "vsam"])
def test_groups_with_their_own_rho(key):
    method, twin_class, fields = PAIRS["sampa-0.2-base" if key == "sampa" else key]
    rhos = [0.3, 0.0, 0.3, 0.3] if key != "micro-sam" else [0.3, 0.0, 0.05, 0.05]

    def groups(model):
        parameters = list(model.parameters())
        return [{"params": [p], "rho": rho} for p, rho in zip(parameters, rhos, strict=True)]

    assert_follows(method, twin_class, {**fields, "rho": rhos}, "momentum", groups=groups)


@pytest.mark.parametrize("key", ["sam-adaptive", "sam-layerwise"])
def test_geometries_with_an_excluded_group(key):
    method, twin_class, fields = PAIRS[key]
    rhos = [0.2, 0.0, 0.1, 0.0]

    def groups(model):
        parameters = list(model.parameters())
        return [{"params": [p], "rho": rho} for p, rho in zip(parameters, rhos, strict=True)]

    assert_follows(method, twin_class, {**fields, "rho": rhos}, "momentum", groups=groups)


def test_a_tensor_of_zeros_counts_as_norm_one_layerwise():
    w = PROBLEM.weights(1)
    w[1] = np.zeros_like(w[1])
    w[3] = np.zeros_like(w[3])
    method, twin_class, fields = PAIRS["sam-layerwise"]
    run, _ = assert_follows(method, twin_class, fields, "momentum", w=w)
    assert np.abs(run.w[1]).max() > 0
