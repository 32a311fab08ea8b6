"""Vectors of DTensors: their local shards, and sums over the ranks that hold the other shards.

Arithmetic uses the local shards, because most ``torch._foreach_*`` do not support DTensors. Sums over all entries of a
tensor are reduced over the mesh dimensions that shard the tensor. Ordinary tensors stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowland.core.transfer import to_device

ORDINARY = {Tensor, nn.Parameter}


def ordinary(v: Sequence[Tensor]) -> bool:
    """Whether no tensor is a DTensor, as a quick test by type."""
    return not set(map(type, v)) - ORDINARY or not any(map(is_sharded, v))


def is_sharded(t: Tensor) -> bool:
    """Whether a tensor is a DTensor, by its attributes: an import of the class takes half a second."""
    return hasattr(t, "device_mesh") and hasattr(t, "placements")


def layout(t: Any) -> str:
    """How a tensor is divided among ranks, in words: the shape of its mesh and its placements."""
    return f"{t.placements} on a mesh of {tuple(t.device_mesh.shape)}" if is_sharded(t) else "not sharded"


def number(t: Any) -> int:
    """The number of this rank's shard among those of a tensor; ranks that hold the same shard have the same number."""
    found = 0
    if is_sharded(t):
        for dim, (placement, here) in enumerate(zip(t.placements, t.device_mesh.get_coordinate(), strict=True)):
            found = found * t.device_mesh.size(dim) + here if placement.is_shard() else found
    return found


def local(v: Sequence[Tensor]) -> list[Tensor]:
    """The local shards of the tensors, which share their memory."""
    if ordinary(v):
        return list(v)
    return [_shard(t) if is_sharded(t) else t for t in v]


def like(tensors: Sequence[Tensor], results: Sequence[Tensor]) -> list[Tensor]:
    """Give the local ``results`` the placements of ``tensors``."""
    if ordinary(tensors):
        return list(results)
    return [_placed(t, result) if is_sharded(t) else result for t, result in zip(tensors, results, strict=True)]


def same(a: Tensor, b: Tensor) -> bool:
    """Whether this rank's shards are equal. ``torch.equal`` on DTensors communicates, so all ranks must call that."""
    first, second = local([a, b])
    return torch.equal(first, second)


def gathered(t: Tensor) -> Tensor:
    """The full tensor on every rank. All ranks that hold shards of the tensor must call this function."""
    full: Tensor = t.full_tensor() if is_sharded(t) else t  # type: ignore[attr-defined]
    return full


def divided(full: Tensor, t: Any) -> Tensor:
    """This rank's part of a tensor that is the same on all ranks, with the mesh and placements of ``t``.

    Nothing is communicated. The result for an ordinary ``t`` is ``full`` itself.
    """
    if not is_sharded(t):
        return full
    from torch.distributed.tensor import Replicate  # has been imported, because t is a DTensor

    everywhere = type(t).from_local(full, t.device_mesh, [Replicate()] * t.device_mesh.ndim, run_check=False)
    part: Tensor = everywhere.redistribute(placements=t.placements)
    return part


def _shard(t: Any) -> Tensor:
    """The local shard of a DTensor, without the view that ``to_local`` makes of a parameter's shard.

    A shard that a collective still writes has a type of its own, and is left to ``to_local``.
    """
    shard = getattr(t, "_local_tensor", None)
    if type(shard) is Tensor:
        return shard
    with torch.no_grad():
        return t.to_local()  # type: ignore[no-any-return]


def _placed(t: Any, result: Tensor) -> Tensor:
    """A DTensor of a local shard with the mesh, the placements, the shape and the strides of ``t``.

    ``fully_shard`` makes the DTensors of its parameters and gradients by the same constructor. It takes a tenth of the
    time of ``from_local``, which is left to a torch without this constructor and to results that require a gradient.
    """
    spec: Any = getattr(t, "_spec", None)
    meta = getattr(spec, "tensor_meta", None)
    if meta is not None and not result.requires_grad:
        if meta.dtype != result.dtype:  # a copy, because t and other tensors share this object
            spec = copy.copy(spec)
            spec.tensor_meta = meta._replace(dtype=result.dtype)
        try:
            return type(t)(result, spec, requires_grad=False)  # type: ignore[no-any-return]
        except TypeError:
            pass
    placed: Tensor = type(t).from_local(
        result, t.device_mesh, t.placements, run_check=False, shape=t.shape, stride=t.stride()
    )
    return placed


def total(parts: Tensor, v: Sequence[Tensor]) -> Tensor:
    """Sum one number per tensor over all shards of the tensor.

    Args:
        parts: This rank's numbers, shape ``(len(v),)``.
        v: The tensors.
    """
    if ordinary(v):
        return parts
    for group, index in _groups(v):
        if len(index) == len(v):
            parts = _summed(parts.clone(), group)
        else:
            indices = _indices(tuple(index), parts.device)
            parts = parts.index_copy(0, indices, _summed(parts[indices], group))
    return parts


@lru_cache(maxsize=64)
def _indices(index: tuple[int, ...], device: torch.device) -> Tensor:
    """The indices on a device. They are kept, because a model has the same sharded parameters in every step."""
    return to_device(torch.tensor(index), device)


def every(flag: Tensor, v: Sequence[Tensor]) -> Tensor:
    """Whether a boolean of shape ``()`` holds on all ranks that hold shards of ``v``."""
    if ordinary(v):
        return flag
    for group, _ in _groups(v):
        flag = _summed((~flag).to(torch.int32), group) == 0
    return flag


def groups(v: Sequence[Tensor]) -> list[dist.ProcessGroup]:
    """The process groups of all mesh dimensions of the DTensors in ``v``, without duplicates."""
    result: list[dist.ProcessGroup] = []
    for mesh in _meshes(v):
        result += [g for g in (mesh.get_group(dim) for dim in range(mesh.ndim)) if g not in result]
    return result


def copies(v: Sequence[Tensor]) -> int:
    """The number of replicas of the vector under ``fully_shard`` with replication; 0 without replication."""
    for mesh in _meshes(v):
        all_placements = [t.placements for t in v if is_sharded(t) and t.device_mesh == mesh]  # type: ignore[attr-defined]
        for dim in range(mesh.ndim):
            if mesh.size(dim) > 1 and all(placements[dim].is_replicate() for placements in all_placements):
                return int(mesh.size(dim))
    return 0


def _meshes(v: Sequence[Tensor]) -> list[Any]:
    meshes: list[Any] = []
    for t in v:
        if is_sharded(t) and t.device_mesh not in meshes:  # type: ignore[attr-defined]
            meshes.append(t.device_mesh)  # type: ignore[attr-defined]
    return meshes


def _groups(v: Sequence[Tensor]) -> Iterator[tuple[dist.ProcessGroup, list[int]]]:
    """For every sharded mesh dimension: its group and the tensors' indices, in the same order on all ranks."""
    for mesh in _meshes(v):
        for dim in range(mesh.ndim):
            index = [
                i
                for i, t in enumerate(v)
                if is_sharded(t) and t.device_mesh == mesh and t.placements[dim].is_shard()  # type: ignore[attr-defined]
            ]
            if index:
                yield mesh.get_group(dim), index


def _summed(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    dist.all_reduce(x, group=group)
    return x


def span(t: Tensor) -> tuple[int, int, int] | None:
    """The memory of a tensor or of its local shard: an identifier of the storage, its first byte, and its end.

    The result is None for a tensor that is empty or has no strided storage.
    """
    (shard,) = local([t])
    if shard.numel() == 0 or shard.layout is not torch.strided or shard.is_nested:
        return None
    try:
        storage, first = int(shard.untyped_storage()._cdata), int(shard.storage_offset())
    except RuntimeError:  # a subclass of Tensor whose memory torch does not know
        return None
    last = sum((n - 1) * s for n, s in zip(shard.shape, shard.stride(), strict=True))
    size = shard.element_size()
    return storage, first * size, (first + last + 1) * size
