"""Vectors whose tensors are DTensors: what of them lies on this rank, and sums over the ranks that hold the rest.

Arithmetic works on the local shards, because most ``torch._foreach_*`` have no rule for DTensors; what depends on a
whole tensor is reduced over the mesh dimensions that the tensor is sharded on. Ordinary tensors pass through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

ORDINARY = {Tensor, nn.Parameter}


def ordinary(v: Sequence[Tensor]) -> bool:
    """Whether no tensor is a DTensor, as a quick test by type."""
    return not set(map(type, v)) - ORDINARY or not any(map(is_sharded, v))


def is_sharded(t: Tensor) -> bool:
    """Whether it is a DTensor. Its class is not imported here: that takes half a second."""
    return hasattr(t, "device_mesh") and hasattr(t, "placements")


@torch.no_grad()
def local(v: Sequence[Tensor]) -> list[Tensor]:
    """What lies on this rank: the very memory of the tensors, not a copy."""
    if ordinary(v):
        return list(v)
    return [t.to_local() if is_sharded(t) else t for t in v]  # type: ignore[attr-defined]


def like(whole: Sequence[Tensor], found: Sequence[Tensor]) -> list[Tensor]:
    """The local results ``found`` as tensors placed as those of ``whole``."""
    if ordinary(whole):
        return list(found)
    return [_placed(t, f) if is_sharded(t) else f for t, f in zip(whole, found, strict=True)]


def gathered(t: Tensor) -> Tensor:
    """All of a tensor on every rank. All ranks that hold shards of it call this."""
    full: Tensor = t.full_tensor() if is_sharded(t) else t  # type: ignore[attr-defined]
    return full


def _placed(t: Any, found: Tensor) -> Tensor:
    placed: Tensor = type(_data(t)).from_local(
        found, t.device_mesh, t.placements, run_check=False, shape=t.shape, stride=t.stride()
    )
    return placed


def _data(t: Any) -> Any:
    return t.data if isinstance(t, nn.Parameter) else t


def total(parts: Tensor, v: Sequence[Tensor]) -> Tensor:
    """Sums over all shards of what each rank found on its own, one number per tensor.

    Args:
        parts: This rank's numbers, shape ``(len(v),)``.
        v: The tensors they are of.
    """
    if ordinary(v):
        return parts
    for group, index in _groups(v):
        if len(index) == len(v):
            parts = _summed(parts.clone(), group)
        else:
            place = torch.tensor(index, device=parts.device)
            parts = parts.index_copy(0, place, _summed(parts[place], group))
    return parts


def every(flag: Tensor, v: Sequence[Tensor]) -> Tensor:
    """Whether a boolean of shape ``()`` holds on all ranks that hold shards of ``v``."""
    if ordinary(v):
        return flag
    for group, _ in _groups(v):
        flag = _summed((~flag).to(torch.int32), group) == 0
    return flag


def groups(v: Sequence[Tensor]) -> list[dist.ProcessGroup]:
    """The process groups along all mesh dimensions of the DTensors in ``v``, sharded or replicated, each once."""
    found: list[dist.ProcessGroup] = []
    for mesh in _meshes(v):
        found += [g for g in (mesh.get_group(dim) for dim in range(mesh.ndim)) if g not in found]
    return found


def copies(v: Sequence[Tensor]) -> int:
    """How many copies of the whole vector a mesh of ``fully_shard`` holds, which averages over them; 0 for one."""
    for mesh in _meshes(v):
        held = [t.placements for t in v if is_sharded(t) and t.device_mesh == mesh]  # type: ignore[attr-defined]
        for dim in range(mesh.ndim):
            if mesh.size(dim) > 1 and all(placed[dim].is_replicate() for placed in held):
                return int(mesh.size(dim))
    return 0


def _meshes(v: Sequence[Tensor]) -> list[Any]:
    meshes: list[Any] = []
    for t in v:
        if is_sharded(t) and t.device_mesh not in meshes:  # type: ignore[attr-defined]
            meshes.append(t.device_mesh)  # type: ignore[attr-defined]
    return meshes


def _groups(v: Sequence[Tensor]) -> Iterator[tuple[dist.ProcessGroup, list[int]]]:
    """Along every sharded mesh dimension: its group, and the places of the tensors. In the same order on every rank."""
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
    """Where a tensor, or its shard here, lies in memory: what tells its storage from others, first byte, and past last.

    None where it is empty, or has no storage of the usual kind.
    """
    (mine,) = local([t])
    if mine.numel() == 0 or mine.layout is not torch.strided:
        return None
    try:
        storage, first = int(mine.untyped_storage()._cdata), int(mine.storage_offset())
    except (NotImplementedError, RuntimeError):
        return None
    reach = sum((n - 1) * s for n, s in zip(mine.shape, mine.stride(), strict=True))
    size = mine.element_size()
    return storage, first * size, (first + reach + 1) * size
