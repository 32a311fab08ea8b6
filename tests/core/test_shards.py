"""DTensors that are made of local shards."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lowland.core import precision, shards, vec

KINDS = [
    ([Shard(0)], (5, 4)),
    ([Shard(1)], (3, 4)),
    ([Replicate()], (6,)),
    ([Shard(0)], (1, 2)),
]  # the last: one is empty


def params(dtype: torch.dtype) -> list[Any]:
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (2,))
    result = [nn.Parameter(distribute_tensor(torch.randn(shape, dtype=dtype), mesh, place)) for place, shape in KINDS]
    turned = torch.randn(4, 6, dtype=dtype).t()  # strides that are not those of a contiguous tensor
    return [*result, nn.Parameter(DTensor.from_local(turned[:3], mesh, [Shard(0)], shape=(6, 4), stride=(1, 6)))]


def dispatched(p: Any, local: Tensor) -> Any:
    """A DTensor by torch's public function."""
    return DTensor.from_local(local, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())


def vectors(dtype: torch.dtype) -> tuple[list[Any], list[Any], list[Any]]:
    """Parameters, and vectors for them that lowland and torch have made of the same local shards."""
    ps = params(dtype)
    locals_ = []
    for i, t in enumerate(shards.local(ps)):
        torch.manual_seed(i)  # ranks with the same shape have the same values: copies of a tensor are equal
        locals_.append(torch.randn_like(t, dtype=precision.of_vectors(dtype)))
    return ps, shards.like(ps, locals_), [dispatched(p, t) for p, t in zip(ps, locals_, strict=True)]


def as_torch_makes_them(dtype: torch.dtype) -> bool:
    ps, ours, theirs = vectors(dtype)
    for p, a, b in zip(ps, ours, theirs, strict=True):
        assert type(a) is type(b) is DTensor
        assert (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)
        assert (a.placements, a.device_mesh) == (b.placements, b.device_mesh)
        assert a._spec.tensor_meta == b._spec.tensor_meta
        assert a._spec == b._spec
        assert not a.requires_grad
        assert a.to_local().data_ptr() == b.to_local().data_ptr()
        assert p._spec.tensor_meta.dtype == p.dtype == dtype  # that of the parameter has not changed
        assert a.full_tensor().dtype == a.dtype
        assert torch.equal(a.full_tensor(), b.full_tensor())
        assert torch.equal((a + p.detach() * 2).full_tensor(), (b + p.detach() * 2).full_tensor())
        assert torch.equal(a.clone().to(dtype).full_tensor(), b.clone().to(dtype).full_tensor())
    return True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_is_the_tensor_that_torch_makes(dtype: torch.dtype) -> None:
    assert on_ranks(2, as_torch_makes_them, dtype) == [True, True]


def stepped(dtype: torch.dtype, kind: str, ours: bool) -> list[Tensor]:
    ps, mine, theirs = vectors(dtype)
    optimizer = getattr(torch.optim, kind)(ps, lr=0.1)
    for _ in range(2):
        for p, g in zip(ps, mine if ours else theirs, strict=True):
            p.grad = g.to(dtype)
        nn.utils.clip_grad_norm_(ps, 1.0)
        optimizer.step()
    return [p.full_tensor().detach() for p in ps]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_an_optimizer_steps_with_it(dtype: torch.dtype, kind: str) -> None:
    ours, theirs = (on_ranks(2, stepped, dtype, kind, choice) for choice in (True, False))
    for a, b in zip(ours[0] + ours[1], theirs[0] + theirs[1], strict=True):
        assert torch.equal(a, b)


def saved(folder: str) -> bool:
    _, ours, _ = vectors(torch.bfloat16)
    names = [f"v{i}" for i in range(len(ours))]
    dcp.save(dict(zip(names, ours, strict=True)), checkpoint_id=folder)
    loaded = dict(zip(names, vec.zeros(params(torch.bfloat16)), strict=True))
    dcp.load(loaded, checkpoint_id=folder)
    assert {t.dtype for t in loaded.values()} == {torch.float32}
    return all(shards.same(a, b) for a, b in zip(ours, loaded.values(), strict=True))


def test_a_distributed_checkpoint_has_its_values(tmp_path: Path) -> None:
    assert on_ranks(2, saved, str(tmp_path)) == [True, True]


class Calls(TorchDispatchMode):
    """Lists the operators that run inside the context."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def calls() -> list[list[str]]:
    ps = params(torch.bfloat16)
    with Calls() as inside:
        local = shards.local(ps)
    with Calls() as outside:
        shards.like(ps, local)
    with Calls() as torchs:
        dispatched(ps[0], local[0])
    return [inside.names, outside.names, torchs.names]


def test_no_operator_runs() -> None:
    for inside, outside, torchs in on_ranks(2, calls):
        assert inside == outside == []
        assert torchs  # the count sees those of from_local


def shared() -> bool:
    ps = params(torch.float32)
    for p, local in zip(ps, shards.local(ps), strict=True):
        assert not local.requires_grad
        assert type(local) is Tensor
        assert local.data_ptr() == p.to_local().data_ptr()
        local.fill_(2.0)
        assert bool((p.to_local() == 2.0).all())
    return True


def test_a_local_shard_is_the_memory_of_the_parameter() -> None:
    assert on_ranks(2, shared) == [True, True]


def still_arriving() -> bool:
    """A shard that a collective still writes: arithmetic on what ``local`` returns waits for it."""
    from torch.distributed._functional_collectives import all_reduce

    mesh = init_device_mesh("cpu", (2,))
    arriving = all_reduce(torch.ones(4), "sum", mesh.get_group())
    assert type(arriving) is not Tensor
    t = DTensor.from_local(torch.zeros(4), mesh, [Shard(0)])
    t._local_tensor = arriving
    return torch.equal(shards.local([t])[0] + 0, torch.full((4,), 2.0))


def test_a_shard_that_a_collective_writes() -> None:
    assert on_ranks(2, still_arriving) == [True, True]


class Foreign:
    """Stands for a DTensor of a torch whose constructor has other arguments."""

    from_local = staticmethod(DTensor.from_local)

    def __init__(self, like: Any, spec: Any) -> None:
        self.device_mesh, self.placements, self.shape, self.stride = (
            like.device_mesh,
            like.placements,
            like.shape,
            like.stride,
        )
        self._spec = spec


def without_the_constructor() -> bool:
    (p, *_), (v, *_), _ = vectors(torch.bfloat16)
    for spec in (None, SimpleNamespace(tensor_meta=None), p._spec):
        placed = shards._placed(Foreign(p, spec), v.to_local())
        assert (placed.dtype, placed.shape, placed.placements) == (torch.float32, p.shape, p.placements)
        assert torch.equal(placed.full_tensor(), v.full_tensor())
    needed = v.to_local().clone().requires_grad_()
    placed = shards._placed(p, needed * 2)
    placed.to_local().sum().backward()
    dist.barrier()
    return torch.equal(needed.grad, torch.full_like(needed, 2.0))


def test_a_torch_without_the_constructor_and_a_result_with_a_graph() -> None:
    assert on_ranks(2, without_the_constructor) == [True, True]
