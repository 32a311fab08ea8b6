"""SAMPa and mSAM on several ranks follow the numpy twins that were written from the papers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch.distributed as dist
from ranks import on_ranks
from reference import drive, micro_sam, sampa
from reference.follow import BASES, PROBLEM, assert_follows, batches, schedule
from reference.model import take
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import lowland
from lowland import MicroSAM, SAMPa

pytestmark = pytest.mark.usefixtures("way")
STEPS = 20
PAIRS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    **{
        f"sampa-{lam}-{ahead}": (
            SAMPa(rho=0.2, lam=lam, lookahead=ahead),
            sampa.SAMPa,
            {"rho": 0.2, "lam": lam, "lookahead": ahead},
        )
        for lam, ahead in ((0.0, "base"), (0.2, "base"), (0.2, "raw"), (1.0, "base"))
    },
    "micro-sam-2": (MicroSAM(rho=0.1, m=2), micro_sam.MicroSAM, {"rho": 0.1, "m": 2}),
    "micro-sam-5": (MicroSAM(rho=0.1, m=5), micro_sam.MicroSAM, {"rho": 0.1, "m": 5}),
}


def on_a_mesh(key: str, base_key: str) -> None:
    """Probes divided over all ranks; each rank follows a twin of its own."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("probe",))
    assert_follows(*PAIRS[key], base_key, STEPS, mesh=mesh)


@pytest.mark.parametrize("base_key", BASES)
@pytest.mark.parametrize("key", PAIRS)
def test_two_ranks_follow(key: str, base_key: str) -> None:
    on_ranks(2, on_a_mesh, key, base_key)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["sampa-0.2-base", "micro-sam-5"])
def test_more_ranks_than_probes_and_fewer(key: str) -> None:
    on_ranks(4, on_a_mesh, key, "momentum")


def on_shares(key: str, probe: int, wrapped: bool) -> list[Any]:
    """The batch divided over ranks, too; the twin takes it whole."""
    data = dist.get_world_size() // probe
    mesh = init_device_mesh("cpu", (probe, data), mesh_dim_names=("probe", "data" if wrapped else "replicate"))
    method, twin_class, fields = PAIRS[key]
    if isinstance(method, MicroSAM):
        method = MicroSAM(rho=0.1, m=method.m // data)
    base, optimizer = BASES["momentum"]
    w = PROBLEM.weights(1)
    whole = [b for b in batches(2 * STEPS) if len(b[0]) % data == 0][:STEPS]
    run, twin = drive.Run(PROBLEM, w, method, optimizer), twin_class(PROBLEM, w, copy.deepcopy(base), **fields)
    model: Any = run.model
    if wrapped:
        model = DistributedDataParallel(model, process_group=mesh["data"].get_group())
        mesh = mesh["probe"]
    elif probe == 1:
        mesh = mesh["replicate"]
    run.engine = lowland.Engine(method, model, run.optimizer, PROBLEM.loss_fn, mesh=mesh)
    rank = dist.get_rank() % data
    for batch, lr in zip(whole, schedule(STEPS, 0.2), strict=True):
        share = len(batch[0]) // data
        run.step(take(batch, range(rank * share, (rank + 1) * share)), lr)
        twin.step(batch, lr)
        drive.assert_same([run.w], [twin.w])
    assert max(abs(a - b).max() for a, b in zip(run.w, w, strict=True)) > 0.01
    return run.w


@pytest.mark.parametrize(
    ("key", "ranks", "probe", "wrapped"),
    [
        ("sampa-0.2-base", 4, 2, True),
        ("sampa-0.2-base", 4, 2, False),
        ("micro-sam-2", 2, 1, False),
    ],
)
def test_ranks_that_share_a_batch_follow(key: str, ranks: int, probe: int, wrapped: bool) -> None:
    first, *others = on_ranks(ranks, on_shares, key, probe, wrapped)
    for other in others:
        assert all((a == b).all() for a, b in zip(first, other, strict=True))
