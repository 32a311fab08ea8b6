"""What docs/migrate.md says about several ranks, run on two."""

from __future__ import annotations

import pytest
import torch
from migrated import two_ranks
from migrated.checks import ON_RANKS, SEEN
from migrated.page import apart, calls, rows
from official.files import recorded
from ranks import on_ranks

ROWS = {(row.section, row.what): row for row in rows()}
GSAM = ("pytorch_optimizer", "DDP, GSAM")
MSAM = ("the Momentum-SAM release", "DDP")
RELEASES = {  # what was recorded on two ranks: by the mean gradient, or each rank by its own
    ("davda54/sam", "DDP"): "ddp2_davda54_mlp_sgd",
    ("davda54/sam", "DDP, each rank by its own gradient"): "ddp2_composer_mlp_sgd",
    ("composer", "DDP"): "ddp2_composer_mlp_sgd",
    ("the GSAM release", "DDP"): "ddp2_release_mlp_sgd",
    ("optax", "several devices, `updates` averaged by `pmean`"): "ddp2_davda54_mlp_sgd",
    ("optax", "several devices, `updates` of each device"): "ddp2_composer_mlp_sgd",
}


def method(key: tuple[str, str]) -> str:
    return calls(ROWS[key].after)["method"]


def test_every_row_is_run() -> None:
    assert {*RELEASES, GSAM, MSAM} == set(ON_RANKS)
    assert {key for key in ROWS if "DDP" in key[1] or "several devices" in key[1]} == set(ON_RANKS)


@pytest.mark.parametrize("key", RELEASES, ids=": ".join)
def test_rows_follow_what_was_recorded_on_two_ranks(key: tuple[str, str]) -> None:
    for path in on_ranks(2, two_ranks.followed, method(key)):
        assert apart(path, recorded(RELEASES[key]).weights) < 1e-10


def test_gsam_of_pytorch_optimizer_perturbs_each_rank_by_its_own_gradient() -> None:
    old = on_ranks(2, two_ranks.by_pytorch_optimizer)
    new = on_ranks(2, two_ranks.followed, method(GSAM))
    assert max(apart(a, b) for a, b in zip(old, new, strict=True)) < 1e-6
    assert apart(old[0], on_ranks(2, two_ranks.followed, "GSAM(rho=0.1, alpha=0.4)")[0]) > SEEN


def test_momentum_sam_perturbs_by_the_momentum_of_the_mean_gradient() -> None:
    old = on_ranks(2, two_ranks.by_msam, 0.3)
    new = on_ranks(2, two_ranks.followed, method(MSAM), 0.0)
    assert max(apart(a, b[-1]) for a, b in zip(old, new, strict=True)) < 1e-10


def test_no_sync_around_backward_alone_averages_nevertheless() -> None:
    first, second = on_ranks(2, two_ranks.first_gradients)
    assert torch.equal(first["backward"], second["backward"])
    assert not torch.allclose(first["both"], second["both"], atol=SEEN)


def test_the_mean_gradient_has_other_weights_than_gsam_s_release() -> None:
    path = on_ranks(2, two_ranks.followed, "GSAM(rho=0.1, alpha=0.4)")[0]
    assert apart(path, recorded("ddp2_release_mlp_sgd").weights) > SEEN
