"""Losses with a count of their own under sharding, scalers, meshes and empty ranks: as one process on all examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import lowland
from lowland.core.errors import LowlandError
from lowland.core.probe import Probe
from lowland.executors import Pass
from lowland.methods import make

METHODS = (
    "sam:rho=0.5",
    "sampa:rho=0.5",
    "looksam:rho=0.5,k=2",
    "gsam:rho=0.5",
    "momentum-sam:rho=0.5",
    "sl-sam:rho=0.5",
)
STEPS = 3


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def examples(seed: int, empty: bool) -> list[Tensor]:
    """Inputs, targets and ragged weights; of the first half, rank 0's, none may count."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 3, generator=g, dtype=torch.float64)
    w = torch.rand(8, generator=g, dtype=torch.float64) ** 3 + 0.01
    return [x, torch.randint(2, (8,), generator=g), torch.cat([w[:4] * (0 if empty else 1), w[4:]])]


def counted(m: Any, b: Any) -> lowland.Loss:
    losses = cross_entropy(m(b[0]), b[1], reduction="none") * b[2]
    return lowland.Loss(losses.sum(), b[2].sum())


def trained(
    text: str, net: nn.Module, rank: int, ranks: int, *, empty: bool = False, scaled: bool = False, **options: Any
) -> tuple[list[Tensor], list[float]]:
    """Weights and losses of a few steps on this rank's share."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if scaled else None
    engine = lowland.Engine(make(text), net, optimizer, counted, scaler=scaler, **options)
    losses = []
    for step in range(STEPS):
        size = 8 // ranks
        loss = engine.backward([t[rank * size : (rank + 1) * size] for t in examples(step, empty)])
        losses.append(loss.item())
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()
    weights = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in engine.params]
    return [w.detach().clone() for w in weights], losses


def alone(text: str, *, empty: bool = False) -> tuple[list[Tensor], list[float]]:
    return trained(text, model(), 0, 1, empty=empty)


def same(found: tuple[list[Tensor], list[float]], expected: tuple[list[Tensor], list[float]]) -> None:
    for a, b in zip(found[0], expected[0], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.tensor(found[1]), torch.tensor(expected[1]), rtol=0, atol=1e-12)


def sharded(empty: bool, **options: Any) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    found = {}
    for text in METHODS:
        net = model()
        for layer in (net[0], net[2], net):
            fully_shard(layer, mesh=mesh)
        found[text] = trained(text, net, dist.get_rank(), dist.get_world_size(), empty=empty, **options)
    return found


def cut_and_sharded(empty: bool) -> dict[str, Any]:
    return sharded(empty, micro_batch=3)


def scaled_and_sharded(empty: bool) -> dict[str, Any]:
    return sharded(empty, scaled=True)


@pytest.mark.slow
def test_fully_shard() -> None:
    for empty in (False, True):
        expected = {text: alone(text, empty=empty) for text in METHODS}
        for function in (sharded, cut_and_sharded, scaled_and_sharded):
            for found in on_ranks(2, function, empty):
                for text in METHODS:
                    same(found[text], expected[text])


def hybrid() -> dict[str, Any]:
    """Two copies of a model, each sharded over two ranks, in micro-batches."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    found = {}
    for text in METHODS:
        net = model()
        for layer in (net[0], net[2], net):
            fully_shard(layer, mesh=mesh)
        found[text] = trained(text, net, dist.get_rank(), 4, micro_batch=1)
    return found


@pytest.mark.slow
def test_hybrid_sharding() -> None:
    expected = {text: alone(text) for text in METHODS}
    for found in on_ranks(4, hybrid):
        for text in METHODS:
            same(found[text], expected[text])


def replicated(empty: bool, options: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for text in METHODS:
        net = DistributedDataParallel(model())
        found[text] = trained(text, net, dist.get_rank(), dist.get_world_size(), empty=empty, **options)
    return found


@pytest.mark.slow
def test_replicas_of_which_one_may_have_nothing_to_count() -> None:
    for empty in (False, True):
        expected = {text: alone(text, empty=empty) for text in METHODS}
        for options in ({}, {"micro_batch": 3}, {"scaled": True}):
            for found in on_ranks(2, replicated, empty, options):
                for text in METHODS:
                    same(found[text], expected[text])


class Looks(lowland.Method):
    """A method that asks for a loss alone, at a displaced point, before it descends."""

    def plan(self, engine: lowland.Engine, batch: Any) -> lowland.Plan:
        here = yield lowland.Probe(batch)
        there = yield lowland.Probe(batch, at=[0.1 * g for g in here.grad], grad=False)
        return there.loss, here.grad


def seen(cut: bool) -> float:
    ranks, rank = dist.get_world_size(), dist.get_rank()
    net = DistributedDataParallel(model())
    engine = lowland.Engine(
        Looks(), net, torch.optim.SGD(net.parameters(), lr=0.1), counted, micro_batch=3 if cut else None
    )
    size = 8 // ranks
    return engine.backward([t[rank * size : (rank + 1) * size] for t in examples(0, False)]).item()


def test_a_loss_without_a_gradient_is_that_of_all_ranks() -> None:
    net = model()
    engine = lowland.Engine(Looks(), net, torch.optim.SGD(net.parameters(), lr=0.1), counted)
    expected = engine.backward(examples(0, False)).item()
    for cut in (False, True):
        for found in on_ranks(2, seen, cut):
            assert abs(found - expected) < 1e-12


def norms(kind: str) -> str:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("probe", "data"))
    group = mesh["data"].get_group()
    if kind == "equal":  # another group of the very same ranks; all ranks make both
        pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        group = pairs[dist.get_rank() // 2]
    if kind == "all":
        group = dist.group.WORLD
    net = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), group)
    fully_shard(net, mesh=mesh["data"])  # DistributedDataParallel takes such layers on GPUs alone
    try:
        lowland.Engine(lowland.SAMPa(), net, torch.optim.SGD(net.parameters(), lr=0.1), counted, mesh=mesh["probe"])
    except LowlandError as error:
        return str(error)
    return ""


def test_synchronized_norms_may_have_a_group_of_their_own_with_the_same_ranks() -> None:
    assert on_ranks(4, norms, "same") == [""] * 4
    assert on_ranks(4, norms, "equal") == [""] * 4
    assert all("must not span the groups of a probe mesh" in text for text in on_ranks(4, norms, "all"))


def in_parts() -> str:
    """What a rank says about a step of three parts on one rank and two on the other."""
    net = model()
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    engine = lowland.Engine(make("sam"), net, torch.optim.SGD(net.parameters(), lr=0.1), counted, micro_batch=2)
    size = 6 if dist.get_rank() else 4
    try:
        engine.backward([t[:size] for t in examples(0, False)])
    except LowlandError as error:
        return str(error)
    return ""


def test_ranks_of_fully_shard_with_other_numbers_of_parts_do_not_wait_for_each_other() -> None:
    for rank, said in enumerate(on_ranks(2, in_parts)):
        assert f"rank {rank} has {2 + rank}, and the mean is 2.5; give all ranks" in said


def by_example(m: Any, b: Any) -> Tensor:
    return cross_entropy(m(b[0]), b[1], reduction="none")


def with_a_name(m: Any, b: Any) -> Tensor:
    return by_example(m, b) if b is not None else torch.autograd.grad(m, b)  # never differentiates


def under_ddp() -> list[list[Tensor]]:
    """Weights after three steps of mSAM, with a loss that may differentiate itself and with one that may not.

    Before each step there is a pass without a gradient, as for a loss that is only looked at.
    """
    rank, found = dist.get_rank(), []
    for loss_fn in (by_example, with_a_name):
        net = DistributedDataParallel(model())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        engine = lowland.Engine(make("micro-sam:rho=0.5,m=2"), net, optimizer, loss_fn)
        for step in range(STEPS):
            batch = [t[rank * 4 : rank * 4 + 4] for t in examples(step, False)]
            with Pass(engine.work, Probe(batch, grad=False, stats=False)) as p:
                p.backward(loss_fn(engine.model, batch))
            engine.backward(batch)
            optimizer.step()
            optimizer.zero_grad()
        found.append([w.detach().clone() for w in engine.params])
    return found


def test_a_loss_that_may_differentiate_itself_is_averaged_over_ranks() -> None:
    for plain, named in on_ranks(2, under_ddp):
        for a, b in zip(plain, named, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
