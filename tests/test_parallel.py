"""Starting on many ranks, and the refusals that keep ranks from going on differently."""

from __future__ import annotations

import copy
import re
import time
import warnings
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
from lowland.core import shards
from lowland.core.errors import ArgumentError, LowlandError
from lowland.parallel import assert_replicas_equal, parse, world


@pytest.mark.parametrize(
    ("text", "sizes"),
    [("probe=2", {"probe": 2}), ("data=4,probe=2", {"probe": 2, "data": 4}), (" replicate = 2 ", {"replicate": 2})],
)
def test_a_mesh_from_a_text(text: str, sizes: dict[str, int]) -> None:
    assert list(parse(text).items()) == list(sizes.items())  # in the order of the mesh, outermost first


@pytest.mark.parametrize(
    "text", ["probe", "probe=", "probe=0", "probe=x", "model=2", "probe=2,probe=2", "probe=2;data=2"]
)
def test_a_malformed_mesh(text: str) -> None:
    with pytest.raises(ArgumentError, match=r"mesh must be dimensions with their sizes.*write probe=2,data=4"):
        parse(text)


def test_a_single_process_needs_no_mesh() -> None:
    with world("probe=2,data=2", "cpu") as alone:
        assert (alone.rank, alone.size, alone.batch_part, alone.along("probe"), alone.first) == (
            0,
            1,
            (0, 1),
            None,
            True,
        )
        alone.agree({"anything": 1})
        assert (alone.broadcast(3), alone.gather(3)) == (3, [3])
    assert not dist.is_initialized()


def caught(act: Any) -> str:
    try:
        act()
    except LowlandError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def engine_on(mesh: Any, method: Any = None, model: Any = None, **options: Any) -> lowland.Engine:
    model = net() if model is None else model
    return lowland.Engine(method or lowland.SAMPa(), model, sgd(model), loss_fn, mesh=mesh, **options)


def probes(count: int = 2) -> Any:
    return init_device_mesh("cpu", (count,), mesh_dim_names=("probe",))


def made_differently(what: str) -> str:
    first, mesh = dist.get_rank() == 0, probes()
    kinds: dict[str, Any] = {
        "method": lambda: engine_on(mesh, lowland.SAMPa(lam=0.2 if first else 0.3)),
        "class": lambda: engine_on(mesh, lowland.SAMPa() if first else lowland.AsyncSAM()),
        "model": lambda: engine_on(mesh, model=net(odd=not first)),
        "weights": lambda: engine_on(mesh, model=net(seed=0 if first else 1)),
        "seed": lambda: engine_on(mesh, seed=0 if first else 1),
    }
    return caught(kinds[what])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("method", r"RankError: method must be the same on all ranks, but is .*lam=0\.3.* on rank 1 and .*lam=0\.2"),
        ("class", "RankError: method must be the same on all ranks, but is AsyncSAM.* on rank 1"),
        ("model", "RankError: number of parameters must be the same on all ranks, but is 9 on rank 1 and 6 on rank 0"),
        ("weights", r"RankError: replicas must be equal, but first\.weight has other bits on rank 1 than on rank 0"),
        ("seed", "RankError: seed must be the same on all ranks, but is 1 on rank 1 and 0 on rank 0"),
    ],
)
def test_engines_that_differ_are_refused_on_all_ranks(what: str, message: str) -> None:
    begun = time.monotonic()
    for told in on_ranks(2, made_differently, what):
        assert re.search(message, told), told
    assert time.monotonic() - begun < 20  # told, not timed out


def other_batches() -> str:
    engine = engine_on(probes())
    engine.backward(batch(dist.get_rank()))
    return caught(lambda: engine.backward(batch(5)))


def test_groups_with_other_batches_are_told_at_the_next_step() -> None:
    for told in on_ranks(2, other_batches):
        assert "BatchError: all groups of a mesh must be given the same batches, but in the step before" in told


def other_layers() -> str:
    model = DistributedDataParallel(net(odd=True), find_unused_parameters=True)

    def loss(model: Any, batch: Any) -> torch.Tensor:
        return loss_fn(model if dist.get_rank() else model.module, batch)

    engine = lowland.Engine(lowland.MicroSAM(m=2), model, sgd(model), loss)
    unused = model.module.unused.weight
    engine.backward(batch(0))
    engine.work.begin = lambda step=0: None  # type: ignore[method-assign]
    engine.work.step.reached = [p is unused if dist.get_rank() else False for p in engine.params]
    return caught(lambda: [engine.backward(batch(1)), engine.backward(batch(2))])


def test_ranks_that_reach_other_parameters_are_told() -> None:
    for told in on_ranks(2, other_layers):
        assert "ParameterError: all ranks must reach the same parameters, but in the step before, rank" in told


def refusals() -> dict[str, str]:
    found: dict[str, str] = {}
    model = DistributedDataParallel(net())
    engine = lowland.Engine(lowland.SAM(), model, sgd(model), loss_fn)
    with model.no_sync():
        found["no_sync"] = caught(lambda: engine.backward(batch(0)))
    part = nn.Sequential(DistributedDataParallel(nn.Linear(5, 3)), nn.Linear(3, 3))
    found["part"] = caught(lambda: lowland.Engine(lowland.SAM(), part, sgd(part), loss_fn))
    mesh = init_device_mesh("cpu", (2,))
    sharded = net()
    fully_shard(sharded, mesh=mesh)
    engine = lowland.Engine(lowland.SAM(), sharded, sgd(sharded), loss_fn)
    sharded.set_requires_gradient_sync(False)  # type: ignore[operator]
    found["unsynced"] = caught(lambda: engine.backward(batch(0)))
    sharded.set_requires_gradient_sync(True)  # type: ignore[operator]
    found["afterwards"] = caught(lambda: engine.backward(batch(0)))
    found["equal"] = caught(lambda: assert_replicas_equal(sharded))
    two = init_device_mesh("cpu", (2, 1), mesh_dim_names=("probe", "data"))
    found["dimensions"] = caught(lambda: engine_on(two))
    return found


def test_refusals() -> None:
    (told, again) = on_ranks(2, refusals)
    assert told == again
    assert "UsageError: engine.backward(batch) must not run inside no_sync()" in told["no_sync"]
    assert "ParameterError: DistributedDataParallel must hold all trainable parameters" in told["part"]
    assert "UsageError: backward left no gradient in any sharded parameter" in told["unsynced"]
    assert told["afterwards"] == "nothing"
    assert "UsageError: sharded parameters differ between the ranks" in told["equal"]
    assert "ArgumentError: mesh must have one dimension for probes" in told["dimensions"]


def drifted(bits: bool) -> str:
    model = net(norm=True)
    if bits and dist.get_rank() == 1:
        with torch.no_grad():
            model.last.bias[1] += 1e-15
    return caught(lambda: assert_replicas_equal(model))


def test_a_bit_that_differs_is_found() -> None:
    assert on_ranks(2, drifted, False) == ["nothing"] * 2
    for told in on_ranks(2, drifted, True):
        assert told.startswith(
            "RankError: replicas must be equal, but last.bias has other bits on rank 1 than on rank 0"
        )


def spoiled(wrapper: str, text: str, nth: int) -> Any:
    """Rank 1's n-th loss is NaN, under a scaler."""
    from conformance import method_of

    rank, calls = dist.get_rank(), []
    model: Any = net()
    mesh = None
    if wrapper == "ddp":
        model = DistributedDataParallel(model)
    elif wrapper == "fsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    else:
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=(wrapper,))

    def loss(model: Any, batch: Any) -> torch.Tensor:
        calls.append(1)
        return loss_fn(model, batch) * (float("nan") if len(calls) == nth and rank == 1 else 1.0)

    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    engine = lowland.Engine(method_of(text), model, optimizer, loss, mesh=mesh, scaler=scaler)
    scales, moved = [], []
    for step in range(6):
        before = [t.clone() for t in engine.params]
        engine.backward(batch(step + 50 * rank * (wrapper != "probe")))
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
        moved.append(not all(torch.equal(a, b) for a, b in zip(before, engine.params, strict=True)))
    memory = {k: copy.deepcopy(engine.memory[k]) for k in engine.vector_keys}
    whole = [shards.gathered(t.detach()).clone() for t in engine.params]
    clean = all(bool(torch.isfinite(shards.gathered(t)).all()) for v in memory.values() for t in v)
    return scales, moved, whole, clean


@pytest.mark.parametrize(
    ("wrapper", "text", "nth"),
    [
        ("ddp", "sam", 3), ("ddp", "micro-sam:m=2", 5), ("ddp", "looksam:k=2", 4), ("ddp", "esam", 4),
        ("fsdp", "sam", 4), ("fsdp", "sampa", 3), ("replicate", "micro-sam:m=2", 6), ("replicate", "k-sam", 4),
        ("probe", "sampa", 3), ("probe", "async-sam", 2),
    ],
)  # fmt: skip
def test_a_nan_on_one_rank_makes_all_skip_the_same_step(wrapper: str, text: str, nth: int) -> None:
    first, second = on_ranks(2, spoiled, wrapper, text, nth)
    assert first[0] == second[0]
    assert first[1] == second[1]
    assert first[1].count(False) == 1  # exactly one step was skipped
    assert all(torch.equal(a, b) for a, b in zip(first[2], second[2], strict=True))
    assert all(bool(torch.isfinite(t).all()) for t in first[2])
    assert first[3]
    assert second[3]


def warned() -> list[str]:
    mesh = probes()
    engine = engine_on(mesh, lowland.SAM())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(3):
            engine.backward(batch(step))
    return [str(w.message) for w in told]


def test_a_method_that_asks_for_one_at_a_time_is_told_once() -> None:
    for told in on_ranks(2, warned):
        assert len(told) == 1
        assert "asked for one probe at a time, so all 2 groups of the mesh computed the same" in told[0]
