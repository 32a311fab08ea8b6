"""The methods that choose another direction than the batch's gradient follow their numpy twins."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from reference import geometry, logits_sam, unified_sam, vasso, xsam
from reference.follow import BASES, assert_follows, in_groups
from reference.normalized import Normalized

from lowland import XSAM, LogitsSAM, UnifiedSAM, VaSSO
from lowland.core.geometry import Adaptive


def pair(kind: Any, twin: Any, **fields: Any) -> tuple[Any, Any, dict[str, Any]]:
    return kind(**fields), twin, fields


def adaptive(kind: Any, twin: Any, **fields: Any) -> tuple[Any, Any, dict[str, Any]]:
    given = {**fields, "geometry": geometry.adaptive(0.1)}
    return kind(**fields, geometry=Adaptive(eta=0.1)), twin, given


PAIRS = {
    "unified-sam": pair(UnifiedSAM, unified_sam.UnifiedSAM, rho=0.3, lam="1-1/t"),
    "unified-sam-1/t": pair(UnifiedSAM, unified_sam.UnifiedSAM, rho=0.3, lam="1/t"),
    "unified-sam-usam": pair(UnifiedSAM, unified_sam.UnifiedSAM, rho=0.3, lam=0.0),
    "unified-sam-half": pair(UnifiedSAM, unified_sam.UnifiedSAM, rho=0.3, lam=0.5),
    "unified-sam-sam": pair(UnifiedSAM, unified_sam.UnifiedSAM, rho=0.3, lam=1),
    "vasso": pair(VaSSO, vasso.VaSSO, rho=0.2),
    "vasso-slow": pair(VaSSO, vasso.VaSSO, rho=0.3, theta=0.2),
    "vasso-adaptive": adaptive(VaSSO, vasso.VaSSO, rho=0.3, theta=0.4),
    "xsam": pair(XSAM, xsam.XSAM, rho=0.2, rho_max=0.4, every=3),
    "xsam-steps": pair(XSAM, xsam.XSAM, rho=0.3, rho_max=0.5, k=3, every=4, alpha_max=8.0, alpha_delta=0.25),
    "xsam-fixed": pair(XSAM, xsam.XSAM, rho=0.2, k=2, alpha=0.5),
    "xsam-adaptive": adaptive(XSAM, xsam.XSAM, rho=0.3, rho_max=0.4, k=2, every=5),
    "logits-sam": pair(LogitsSAM, logits_sam.LogitsSAM, rho=0.3),
    "logits-sam-adaptive": adaptive(LogitsSAM, logits_sam.LogitsSAM, rho=0.5),
}


@pytest.mark.parametrize(("key", "base_key"), list(itertools.product(PAIRS, BASES)))
def test_follows_its_twin(key: str, base_key: str) -> None:
    assert_follows(*PAIRS[key], base_key)


@pytest.mark.parametrize("key", ["unified-sam", "vasso", "xsam"])
def test_normalized_networks_are_followed_too(key: str) -> None:
    assert_follows(*PAIRS[key], "momentum", problem=Normalized(kind="batch"))


@pytest.mark.parametrize("base_key", ["momentum", "adamw"])
@pytest.mark.parametrize("key", ["unified-sam", "unified-sam-half", "vasso", "xsam-fixed", "logits-sam"])
def test_groups_with_their_own_rho(key: str, base_key: str) -> None:
    method, twin_class, fields = PAIRS[key]
    rhos = [0.2, 0.0, 0.05, 0.1]
    assert_follows(method, twin_class, {**fields, "rho": rhos}, base_key, groups=in_groups(rhos))


@pytest.mark.parametrize("head", ["0", "0.weight"])
def test_another_head_by_name(head: str) -> None:
    assert_follows(LogitsSAM(rho=0.3, head=head), logits_sam.LogitsSAM, {"rho": 0.3, "head": 0}, "momentum")


def test_the_choices_are_not_all_alike() -> None:
    """Else the twins of XSAM would agree whatever the search."""
    chosen = set()
    for key in ("xsam", "xsam-steps", "xsam-adaptive"):
        run, twin = assert_follows(*PAIRS[key], "momentum")
        chosen.update(twin.chosen)
        assert float(run.engine.memory["alpha"]) == twin.alpha
    assert len(chosen) > 2
