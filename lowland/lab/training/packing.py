"""Small tensors in one: ``torch.distributed.checkpoint`` spends half a millisecond on each tensor, however small."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lowland.core import shards

SMALL = 65_536  # bytes; what is larger is written by itself
PREFIX = "packed/"  # what the names of packs begin with

Like = Callable[[str, torch.Size, torch.dtype], Tensor]
Contents = dict[str, list[tuple[str, list[int]]]]  # of every pack: names and shapes, in the order they lie in it


def pack(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Contents]:
    """Put small tensors together, one pack per dtype.

    Args:
        tensors: By name.

    Returns:
        The packs, of shape ``(n,)`` and on the CPU, with all tensors that are large, sharded or of a special kind; and
        what the packs hold.
    """
    rest: dict[str, Tensor] = {}
    parts: dict[str, list[Tensor]] = {}
    contents: Contents = {}
    for name, t in tensors.items():
        if not shards.ordinary([t]) or t.layout != torch.strided or t.is_quantized or t.nbytes > SMALL:
            rest[name] = t
            continue
        place = f"{PREFIX}{str(t.dtype).removeprefix('torch.')}"
        parts.setdefault(place, []).append(t.detach().reshape(-1).cpu())
        contents.setdefault(place, []).append((name, list(t.shape)))
    return rest | {place: torch.cat(each) for place, each in parts.items()}, contents


def unpack(tensors: Mapping[str, Tensor], contents: Mapping[str, Any], like: Like) -> dict[str, Tensor]:
    """All tensors by their own names; on several ranks, all of them call this.

    Args:
        tensors: What :func:`pack` gave, read back.
        contents: What the packs hold.
        like: Gives the tensor that one of this name, shape and dtype is read into, such as a DTensor.
    """
    found = {name: t for name, t in tensors.items() if name not in contents}
    for place, listed in contents.items():
        shapes = [torch.Size(shape) for _, shape in listed]
        parts = torch.split(tensors[place], [shape.numel() for shape in shapes])
        for (name, _), shape, part in zip(listed, shapes, parts, strict=True):
            found[name] = _into(like(name, shape, part.dtype), part.view(shape))
    return found


@torch.no_grad()
def _into(target: Any, value: Tensor) -> Tensor:
    if not shards.is_sharded(target):
        target.copy_(value)
        return target  # type: ignore[no-any-return]
    from torch.distributed.tensor import distribute_tensor

    mesh = target.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, target.placements)
