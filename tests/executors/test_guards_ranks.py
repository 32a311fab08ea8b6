"""What one rank alone has left behind must not make it communicate alone."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
import torch.distributed as dist
from problems import batch, loss_fn, net, sgd
from ranks import on_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import lowland

kept: list[nn.Module] = []


def step_beside_shards(door: str) -> list[Any]:
    """A step by the caller's passes, while rank 0 still holds sharded weights with gradients of another model."""
    old = nn.Linear(4, 4)
    fully_shard(old, mesh=init_device_mesh("cpu", (2,)))
    old(torch.ones(2, 4)).sum().backward()
    if dist.get_rank() == 0:
        kept.append(old)
    del old
    gc.collect()  # shards are in cycles, which otherwise stay on rank 1, too
    try:
        model = DistributedDataParallel(net())
        engine = lowland.Engine(lowland.SAM(), model, sgd(model), loss_fn)
        if door == "backward":
            engine.backward(batch(dist.get_rank()))
        else:
            for p in engine.passes(batch(dist.get_rank())):
                with p:
                    p.backward(loss_fn(model, p.batch))
        told: list[Any] = [None, None]
        dist.all_gather_object(told, dist.get_rank())
        return told
    finally:
        kept.clear()


@pytest.mark.parametrize("door", ["backward", "passes"])
def test_a_leftover_of_one_rank_is_compared_on_that_rank(door: str) -> None:
    assert on_ranks(2, step_beside_shards, door) == [[0, 1], [0, 1]]
