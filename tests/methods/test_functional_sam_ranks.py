"""Functional SAM on two ranks: it is the step of one process on the whole batch, however the ranks share the work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from problems import batch, in_parts, net, sgd
from ranks import on_ranks
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from lowland import Criterion, Engine, FunctionalSAM, Loss
from lowland.core.errors import LossError

METHOD = FunctionalSAM(rho=0.7)
# Without the targets of class 0, of which the ranks have different numbers.
COUNTED = Criterion(
    in_parts.forward,
    lambda out, b: Loss((cross_entropy(out, b[1], reduction="none") * (b[1] > 0)).sum(), (b[1] > 0).sum()),
)
LOSSES = {"each": in_parts, "count": COUNTED}


def stepped(model: Any, loss: str, own: Any, **options: Any) -> list[Tensor]:
    """The weights after three steps on ``own(batch)``."""
    engine = Engine(METHOD, model, sgd(model), LOSSES[loss], **options)
    for step in range(3):
        engine.backward(own(batch(step)))
        engine.optimizer.step()
        engine.optimizer.zero_grad()
    return [(p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for p in model.parameters()]


def half(b: Any) -> Any:
    return tuple(t[dist.get_rank() :: 2] for t in b)


def on_a_rank(wrapper: str, loss: str, micro_batch: int | None) -> list[Tensor]:
    model: Any = net()
    if wrapper == "mesh":
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("probe",))
        return stepped(model, loss, lambda b: b, mesh=mesh, micro_batch=micro_batch)
    if wrapper == "replicate":
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("replicate",))
        return stepped(model, loss, half, mesh=mesh, micro_batch=micro_batch)
    if wrapper == "ddp":
        return stepped(DistributedDataParallel(model), loss, half, micro_batch=micro_batch)
    for layer in (model.first, model.second, model.last):
        fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return stepped(model, loss, half, micro_batch=micro_batch)


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("wrapper", ["ddp", "replicate", "fsdp", "mesh"])
def test_two_ranks_are_one(wrapper: str, loss: str, micro_batch: int | None) -> None:
    expected = stepped(net(), loss, lambda b: b)
    for found in on_ranks(2, on_a_rank, wrapper, loss, micro_batch):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


def with_sharded_outputs() -> str:
    mesh, model = init_device_mesh("cpu", (2,)), net()
    loss = Criterion(lambda m, b: DTensor.from_local(m(b[0]), mesh, [Shard(0)]), lambda out, b: out.square().sum())
    with pytest.raises(LossError) as caught:
        Engine(METHOD, model, sgd(model), loss, allow_unaveraged=True).backward(batch())
    return str(caught.value)


def test_sharded_outputs_are_refused() -> None:
    for told in on_ranks(2, with_sharded_outputs):
        assert "outputs must be real tensors of this rank, but one is a DTensor; let forward return" in told
