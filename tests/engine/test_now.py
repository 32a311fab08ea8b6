"""``Engine.now``: a device value of this step on the host, the same on every rank."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from problems import batch, loss_fn, net, sgd
from ranks import on_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import lowland
from lowland.core import vec
from lowland.methods import ae_sam

LAYOUTS = {
    "ddp": ((2,), ("data",)),
    "fully_shard": ((2,), ("data",)),
    "replicate": ((2,), ("replicate",)),
    "probe": ((2,), ("probe",)),
    "probe and ddp": ((2, 2), ("probe", "data")),
    "probe and replicate": ((2, 2), ("probe", "replicate")),
    "replicate and fully_shard": ((2, 2), ("replicate", "data")),
}


def test_on_one_process_it_reads() -> None:
    model = net()
    engine = lowland.Engine(lowland.SAM(), model, sgd(model), loss_fn)
    assert engine.now(torch.tensor(3.5, dtype=torch.float64)) == 3.5
    assert engine.now(torch.tensor([1.0, 2.0])) == [1.0, 2.0]
    assert engine.lagged.waiting == {}


def engine_on(layout: str, method: lowland.Method) -> lowland.Engine:
    shape, names = LAYOUTS[layout]
    mesh, model = init_device_mesh("cpu", shape, mesh_dim_names=names), net()
    if "ddp" in layout:
        model = DistributedDataParallel(model, process_group=mesh["data"].get_group())
    if "fully_shard" in layout:
        fully_shard(model, mesh=mesh["data"])
    own = [name for name in names if name != "data"]
    return lowland.Engine(method, model, sgd(model), loss_fn, mesh=mesh[tuple(own)] if own else None)


def read_on(layout: str) -> Any:
    engine, mine = engine_on(layout, lowland.SAM()), torch.tensor([dist.get_rank() + 1.0, -dist.get_rank()])
    return engine.now(mine), mine.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_ranks_get_the_first_one_s(layout: str) -> None:
    size = 4 if " and " in layout else 2
    # and what was asked about stays as it is
    assert on_ranks(size, read_on, layout) == [([1.0, 0.0], [r + 1.0, float(-r)]) for r in range(size)]


def choose_on(layout: str) -> tuple[list[float], Any, Any]:
    with pytest.MonkeyPatch.context() as patch:
        # Unlike devices add up in another order. This is much more than rounding, so that it decides otherwise.
        off = 1.0 + 0.5 * dist.get_rank()
        steps = iter(range(1000))
        patch.setattr(ae_sam, "vec", SimpleNamespace(norm=lambda v: vec.norm(v) * (off if next(steps) % 2 else 1.0)))
        engine = engine_on(layout, lowland.AESAM(total=12))
        if layout == "probe":
            with pytest.warns(UserWarning, match="one probe at a time"):
                engine.backward(batch(0))
        asked = []
        for i in range(1, 12):
            before = engine.cost.probes
            engine.backward(batch(i))
            asked.append(engine.cost.probes - before)
            engine.optimizer.step()
            engine.optimizer.zero_grad()
        return asked, engine.memory["mean"], engine.memory["var"]


@pytest.mark.parametrize("layout", ["ddp", "fully_shard", "replicate", "probe"])
def test_ae_sam_decides_alike_where_norms_differ(layout: str) -> None:
    first, second = on_ranks(2, choose_on, layout)
    assert first == second
    assert len(set(first[0])) == 2
