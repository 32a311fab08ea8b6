"""Each rank perturbed by its own gradient: every method that can against its twin, one twin for each share of a batch.

The twins are the ones in NumPy that were written from the papers. A twin computes a step's direction on one share of
the batch; the mean of the directions is what a step must hand to the optimizer. Both sides compute in float64.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from reference import (
    ausam,
    bisam,
    drive,
    esam,
    functional_sam,
    geometry,
    gsam,
    k_sam,
    le_sam,
    logits_sam,
    micro_sam,
    rst,
    sam,
    sam_on,
    unified_sam,
    wsam,
)
from reference.follow import BASES, PROBLEM, schedule
from reference.in_parts import InParts
from reference.model import concatenate
from reference.normalized import Normalized
from reference.sampling import Indexed
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import lowland
from lowland.methods import METHODS
from lowland.methods.base import Perturbing

STEPS = 8
INDEXED = Indexed()
NORMALIZED = Normalized()
IN_PARTS = InParts()
# A method, its twin, what the twin is told, and the problem.
PAIRS: dict[str, tuple[Perturbing, Any, dict[str, Any], Any]] = {
    "sam": (lowland.SAM(rho=0.2), sam.SAM, {"rho": 0.2}, PROBLEM),
    "asam": (lowland.ASAM(rho=0.5), sam.SAM, {"rho": 0.5, "geometry": geometry.adaptive()}, PROBLEM),
    "adasam": (lowland.AdaSAM(rho=0.2), sam.SAM, {"rho": 0.2}, PROBLEM),
    "sam-on": (lowland.SAMON(rho=0.2), sam_on.SAMON, {"rho": 0.2}, NORMALIZED),
    "gsam": (lowland.GSAM(rho=0.2), gsam.GSAM, {"rho": 0.2}, PROBLEM),
    "wsam": (lowland.WSAM(rho=0.2), wsam.WSAM, {"rho": 0.2}, PROBLEM),
    "esam": (lowland.ESAM(rho=0.2), esam.ESAM, {"rho": 0.2}, PROBLEM),
    "esam-element": (lowland.ESAM(rho=0.2, mask="element"), esam.ESAM, {"rho": 0.2, "mask": "element"}, PROBLEM),
    "k-sam": (lowland.KSAM(rho=0.2), k_sam.KSAM, {"rho": 0.2}, PROBLEM),
    "bisam": (lowland.BiSAM(rho=0.2), bisam.BiSAM, {"rho": 0.2}, PROBLEM),
    "ausam": (
        lowland.AUSAM(rho=0.2, examples=20, ramp=4, warmup=1),
        ausam.AUSAM,
        {"rho": 0.2, "examples": 20, "ramp": 4, "warmup": 1},
        INDEXED,
    ),
    "rst": (lowland.RST(rho=0.2), rst.RST, {"rho": 0.2}, PROBLEM),
    "unified-sam": (lowland.UnifiedSAM(rho=0.2, lam=0.5), unified_sam.UnifiedSAM, {"rho": 0.2, "lam": 0.5}, PROBLEM),
    "logits-sam": (lowland.LogitsSAM(rho=0.2), logits_sam.LogitsSAM, {"rho": 0.2}, PROBLEM),
    "functional-sam": (lowland.FunctionalSAM(rho=0.5), functional_sam.FunctionalSAM, {"rho": 0.5}, IN_PARTS),
    "le-sam": (lowland.LESAM(rho=0.5, sigma=0.1), le_sam.LESAM, {"rho": 0.5, "sigma": 0.1}, PROBLEM),
}


def shares(step: int, count: int, problem: Any) -> list[Any]:
    """What each rank gets of a step's batch; no two are alike."""
    return [problem.batch(100 * rank + step, 8) for rank in range(count)]


def by_hand(key: str, count: int, together: int = 1) -> Any:
    """Weights after every step, and the losses: ``together`` neighbors count as one."""
    _, kind, fields, problem = PAIRS[key]
    w = problem.weights(1)
    base = copy.deepcopy(BASES["momentum"][0])
    twins = [kind(problem, w, base, **fields) for _ in range(count // together)]
    for step, lr in enumerate(schedule(STEPS, 0.2)):
        parts = shares(step, count, problem)
        joined = [
            tuple(np.concatenate(x) for x in zip(*parts[i : i + together], strict=True))
            for i in range(0, count, together)
        ]
        found = [twin.direction(part)[1] for twin, part in zip(twins, joined, strict=True)]
        w = base.step(w, [np.mean(x, axis=0) for x in zip(*found, strict=True)], lr)
        for twin in twins:
            twin.w = w
    return w


def trained(key: str, wrapper: str, shape: tuple[int, ...], names: tuple[str, ...], local: bool = True) -> Any:
    """The weights of this rank after the same steps; the last dimension of the mesh divides the batch."""
    method, _, _, problem = PAIRS[key]
    method = dataclasses.replace(method, ascent_gradient="local" if local else "mean")
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    run = drive.Run(problem, problem.weights(1), method, BASES["momentum"][1])
    model: nn.Module = run.model
    data = mesh[names[-1]]
    if wrapper == "ddp":
        model = DistributedDataParallel(model, process_group=data.get_group())
    elif wrapper == "fsdp":
        fully_shard(model, mesh=data)
        run.optimizer = BASES["momentum"][1](model.parameters())
    own = None if wrapper in ("ddp", "fsdp") and len(shape) == 1 else mesh if wrapper == "own" else mesh[names[0]]
    run.engine = lowland.Engine(method, model, run.optimizer, problem.loss_fn, mesh=own)
    number, count = (dist.get_rank(), dist.get_world_size())
    if names[0] == "probe":  # all its groups read the same
        number, count = data.get_local_rank(), data.size()
    for step, lr in enumerate(schedule(STEPS, 0.2)):
        run.step(shares(step, count, problem)[number], lr)
    state = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return {"w": [t.detach().numpy().copy() for t in state], "reduces": run.engine.cost.reduces}


def check(found: list[Any], w: Any) -> None:
    drive.assert_same([found[0]["w"]], [w])
    for other in found[1:]:
        assert all((a == b).all() for a, b in zip(found[0]["w"], other["w"], strict=True))


def test_all_that_climb_are_here() -> None:
    assert {key for key, kind in METHODS.items() if issubclass(kind, Perturbing)} <= set(PAIRS)


@pytest.mark.parametrize("wrapper", ["ddp", "own"])
@pytest.mark.parametrize("key", PAIRS)
def test_two_ranks_each_by_its_own_gradient(key: str, wrapper: str) -> None:
    names = ("data" if wrapper == "ddp" else "replicate",)
    found = on_ranks(2, trained, key, wrapper, (2,), names)
    check(found, by_hand(key, 2))
    assert found[0]["reduces"] == STEPS
    with_the_mean = on_ranks(2, trained, key, wrapper, (2,), names, False)
    drive.assert_differ([found[0]["w"]], [with_the_mean[0]["w"]])


@pytest.mark.parametrize("wrapper", ["ddp", "own"])
@pytest.mark.parametrize("key", ["sam", "gsam", "esam", "sam-on", "ausam"])
def test_on_a_mesh_of_probes_and_data(key: str, wrapper: str) -> None:
    names = ("probe", "data" if wrapper == "ddp" else "replicate")
    check(on_ranks(4, trained, key, wrapper, (2, 2), names), by_hand(key, 2))


@pytest.mark.parametrize("key", ["sam", "asam", "gsam", "wsam"])
def test_each_copy_of_a_sharded_model_by_its_own_gradient(key: str) -> None:
    """HSDP: ``fully_shard`` inside groups of two, whose mean gradient perturbs the group's copy."""
    check(on_ranks(4, trained, key, "fsdp", (2, 2), ("replicate", "shard")), by_hand(key, 4, together=2))


@pytest.mark.parametrize("wrapper", ["ddp", "own"])
def test_of_sam_it_is_msam_with_a_part_for_each_rank(wrapper: str) -> None:
    w, base = PROBLEM.weights(1), copy.deepcopy(BASES["momentum"][0])
    twin = micro_sam.MicroSAM(PROBLEM, w, base, rho=0.2, m=2)
    for step, lr in enumerate(schedule(STEPS, 0.2)):
        twin.step(concatenate(*shares(step, 2, PROBLEM)), lr)
    check(on_ranks(2, trained, "sam", wrapper, (2,), ("data" if wrapper == "ddp" else "replicate",)), twin.w)


def test_under_fully_shard_all_ranks_count_as_one() -> None:
    check(on_ranks(2, trained, "gsam", "fsdp", (2,), ("shard",)), by_hand("gsam", 2, together=2))


def with_copies(key: str) -> str:
    """``fully_shard`` itself on a mesh of copies and shards, which averages over both."""
    method, _, _, problem = PAIRS[key]
    model = problem.module(problem.weights(1))
    fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
    batch = drive.to_torch(problem.batch(dist.get_rank()))
    optimizer = BASES["momentum"][1](model.parameters())
    lowland.Engine(method, model, optimizer, problem.loss_fn).backward(batch)
    told = []
    for apart in (dataclasses.replace(method, ascent_gradient="local"), lowland.MicroSAM(m=2)):
        with pytest.raises(lowland.core.errors.UsageError) as caught:
            lowland.Engine(apart, model, optimizer, problem.loss_fn).backward(batch)
        told.append(str(caught.value))
    assert told[0] == told[1]
    return told[0]


def test_copies_that_fully_shard_averages_over_have_no_gradient_of_their_own() -> None:
    for told in on_ranks(4, with_copies, "gsam"):
        assert "fully_shard must not average over the copies" in told
        assert "its mesh holds 2 copies; give it the mesh of one copy, and the engine that of the copies" in told


def through(door: str) -> dict[str, Any]:
    """Two steps' gradients added up by DDP ranks, however they are run, and what a twin on each share says."""
    method, kind, fields, problem = PAIRS["gsam"]
    method = dataclasses.replace(method, ascent_gradient="local")
    model: Any = DistributedDataParallel(problem.module(problem.weights(1)), gradient_as_bucket_view=door == "views")
    optimizer = BASES["momentum"][1](model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0) if door == "scaler" else None
    cut = 3 if door == "micro_batch" else None
    engine = lowland.Engine(method, model, optimizer, problem.loss_fn, micro_batch=cut, scaler=scaler)
    twin = kind(problem, problem.weights(1), BASES["momentum"][0], **fields)
    expected = [np.zeros_like(w) for w in twin.w]
    for step in range(2):
        parts = shares(step, dist.get_world_size(), problem)
        batch = drive.to_torch(parts[dist.get_rank()])
        if door == "passes":
            for p in engine.passes(batch):
                with p:
                    p.backward(problem.loss_fn(model, p.batch))
        else:
            engine.backward(batch)
        found = [twin.direction(part)[1] for part in parts]
        expected = [e + np.mean(x, axis=0) for e, x in zip(expected, zip(*found, strict=True), strict=True)]
    scale = 64.0 if scaler is not None else 1.0
    return {"expected": expected, "found": [p.grad.numpy().copy() / scale for p in model.parameters()]}


@pytest.mark.parametrize("door", ["backward", "views", "passes", "micro_batch", "scaler"])
def test_gradients_add_up_however_passes_are_run(door: str) -> None:
    for rank in on_ranks(2, through, door):
        drive.assert_same([rank["found"]], [rank["expected"]])


def overflowing() -> tuple[bool, bool]:
    """One rank's loss overflows in the displaced pass: whether every gradient is NaN, and after it finite again."""
    method, _, _, problem = PAIRS["gsam"]
    model: Any = DistributedDataParallel(problem.module(problem.weights(1)))
    calls = []

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        calls.append(1)
        return problem.loss_fn(model, batch) * (float("inf") if len(calls) == 2 and dist.get_rank() == 1 else 1.0)

    optimizer, scaler = BASES["momentum"][1](model.parameters()), torch.amp.GradScaler("cpu")
    local = dataclasses.replace(method, ascent_gradient="local")
    engine = lowland.Engine(local, model, optimizer, loss_fn, scaler=scaler)
    batch = drive.to_torch(problem.batch(dist.get_rank()))
    engine.backward(batch)
    lost = all(bool(p.grad.isnan().all()) for p in model.parameters())
    optimizer.zero_grad()
    engine.backward(batch)
    return lost, all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_an_overflow_on_one_rank_is_an_overflow_on_all() -> None:
    assert on_ranks(2, overflowing) == [(True, True)] * 2


@pytest.mark.parametrize("key", PAIRS)
def test_one_process_has_one_gradient(key: str) -> None:
    method, _, _, problem = PAIRS[key]
    paths = []
    for which in ("mean", "local"):
        kind = dataclasses.replace(method, ascent_gradient=which)  # type: ignore[arg-type]
        run = drive.Run(problem, problem.weights(1), kind, BASES["momentum"][1])
        paths.append([run.step(problem.batch(step), 0.1) for step in range(STEPS)] + [x.tolist() for x in run.w])
    assert paths[0] == paths[1]


def test_a_value_that_is_neither() -> None:
    with pytest.raises(
        lowland.core.errors.ArgumentError, match="ascent_gradient must be one of 'mean', 'local', but is 'own'"
    ):
        lowland.GSAM(ascent_gradient="own")  # type: ignore[arg-type]
