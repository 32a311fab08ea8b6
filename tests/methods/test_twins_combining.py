"""The methods that combine gradients otherwise than SAM does follow their numpy twins."""

from __future__ import annotations

import itertools

import pytest
from reference import bisam, friendly_sam, geometry, gsam, momentum_sam, rst, sam, sam_on, wsam
from reference.follow import BASES, assert_follows, in_groups
from reference.normalized import Normalized, OnlyNormalization

from lowland import ASAM, GSAM, RST, SAMON, WSAM, AdaSAM, BiSAM, FriendlySAM, MomentumSAM
from lowland.core.geometry import Adaptive, Layerwise

PAIRS = {
    "asam": (ASAM(), sam.SAM, {"rho": 0.5, "geometry": geometry.adaptive(0.01)}),
    "adasam": (AdaSAM(rho=0.1), sam.SAM, {"rho": 0.1}),
    "friendly-sam": (FriendlySAM(rho=0.2), friendly_sam.FriendlySAM, {"rho": 0.2}),
    "friendly-sam-half": (
        FriendlySAM(rho=0.3, sigma=0.5, lmb=0.6, geometry=Adaptive(eta=0.1)),
        friendly_sam.FriendlySAM,
        {"rho": 0.3, "sigma": 0.5, "lmb": 0.6, "geometry": geometry.adaptive(0.1)},
    ),
    "gsam": (GSAM(rho=0.2), gsam.GSAM, {"rho": 0.2}),
    "gsam-more": (GSAM(rho=0.2, alpha=1.5), gsam.GSAM, {"rho": 0.2, "alpha": 1.5}),
    "wsam": (WSAM(rho=0.05), wsam.WSAM, {"rho": 0.05}),
    "wsam-less": (WSAM(rho=0.3, gamma=0.3), wsam.WSAM, {"rho": 0.3, "gamma": 0.3}),
    "momentum-sam": (MomentumSAM(rho=0.5), momentum_sam.MomentumSAM, {"rho": 0.5}),
    "momentum-sam-layerwise": (
        MomentumSAM(rho=0.2, geometry=Layerwise()),
        momentum_sam.MomentumSAM,
        {"rho": 0.2, "geometry": geometry.layerwise},
    ),
    "bisam": (BiSAM(rho=0.2), bisam.BiSAM, {"rho": 0.2}),
    "bisam-steep": (
        BiSAM(rho=0.2, mu=5.0, alpha=0.7),
        bisam.BiSAM,
        {"rho": 0.2, "mu": 5.0, "alpha": 0.7},
    ),
    "bisam-log": (BiSAM(rho=0.2, mu=0.5, phi="log"), bisam.BiSAM, {"rho": 0.2, "mu": 0.5, "phi": "log"}),
    "rst": (RST(rho=0.2), rst.RST, {"rho": 0.2}),
    "rst-rare": (RST(rho=0.2, s=0.2), rst.RST, {"rho": 0.2, "s": 0.2}),
}

NORMALIZED = {
    "layer": Normalized(),
    "group": Normalized(kind="group"),
    "batch": Normalized(kind="batch"),
    "nothing-else": OnlyNormalization(),
}


# AdaSAM wants AMSGrad, on which it follows below.
@pytest.mark.parametrize(("key", "base_key"), [c for c in itertools.product(PAIRS, BASES) if c != ("adasam", "adamw")])
def test_follows_its_twin(key, base_key):
    assert_follows(*PAIRS[key], base_key)


@pytest.mark.parametrize("key", ["asam", "adasam", "friendly-sam", "momentum-sam"])
def test_follows_its_twin_on_amsgrad(key):
    assert_follows(*PAIRS[key], "adam-amsgrad")


# A bias before BatchNorm has no gradient; Adam would divide the rounding of none by its own size.
@pytest.mark.parametrize(
    ("kind", "base_key"), [c for c in itertools.product(NORMALIZED, BASES) if c != ("batch", "adamw")]
)
def test_sam_on_follows_its_twin(kind, base_key):
    method = SAMON(rho=0.5)
    assert_follows(method, sam_on.SAMON, {"rho": 0.5}, base_key, problem=NORMALIZED[kind])


def test_sam_on_follows_its_twin_in_an_adaptive_ball():
    method, fields = SAMON(rho=0.5, geometry=Adaptive()), {"rho": 0.5, "geometry": geometry.adaptive()}
    assert_follows(method, sam_on.SAMON, fields, "momentum", problem=Normalized())


@pytest.mark.parametrize("key", ["bisam", "friendly-sam"])
def test_normalized_networks_are_followed_too(key):
    assert_follows(*PAIRS[key], "momentum", problem=Normalized(kind="batch"))


@pytest.mark.parametrize("base_key", ["momentum", "adamw"])
@pytest.mark.parametrize("key", ["asam", "friendly-sam", "gsam", "wsam", "momentum-sam", "bisam", "rst"])
def test_groups_with_their_own_rho(key, base_key):
    method, twin_class, fields = PAIRS[key]
    rhos = [0.2, 0.0, 0.05, 0.1]
    assert_follows(method, twin_class, {**fields, "rho": rhos}, base_key, groups=in_groups(rhos))


def test_sam_on_perturbs_no_group_with_radius_zero():
    rhos = [0.3, 0.3, 0.5, 0.0, 0.3, 0.3]
    assert_follows(SAMON(), sam_on.SAMON, {"rho": rhos}, "momentum", problem=Normalized(), groups=in_groups(rhos))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_steps_follow_the_seed(seed):
    run, twin = assert_follows(RST(rho=0.2), rst.RST, {"rho": 0.2, "seed": seed}, "momentum", steps=24, seed=seed)
    assert 4 < sum(twin.choices) < 20
    assert run.engine.cost.probes == 24 + sum(twin.choices)
