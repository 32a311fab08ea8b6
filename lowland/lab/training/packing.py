"""Packs small tensors into one, because ``torch.distributed.checkpoint`` spends 0.5 ms on each tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lowland.core import shards

SMALL = 65_536  # bytes; larger tensors are not packed
PREFIX = "packed/"  # the prefix of the names of packs

Like = Callable[[str, torch.Size, torch.dtype], Tensor]
Contents = dict[str, list[tuple[str, list[int]]]]  # by pack: the names and shapes of its tensors, in order


def pack(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Contents]:
    """Pack small tensors, one pack per dtype.

    Args:
        tensors: The tensors by name.

    Returns:
        The packs, of shape ``(n,)`` and on the CPU, together with the unpacked tensors (large, sharded or of a special
        kind); and the contents of the packs.
    """
    unpacked: dict[str, Tensor] = {}
    parts: dict[str, list[Tensor]] = {}
    contents: Contents = {}
    for name, t in tensors.items():
        if not shards.ordinary([t]) or t.layout != torch.strided or t.is_quantized or t.nbytes > SMALL:
            unpacked[name] = t
            continue
        pack_name = f"{PREFIX}{str(t.dtype).removeprefix('torch.')}"
        parts.setdefault(pack_name, []).append(t.detach().reshape(-1).cpu())
        contents.setdefault(pack_name, []).append((name, list(t.shape)))
    return unpacked | {pack_name: torch.cat(part) for pack_name, part in parts.items()}, contents


def unpack(tensors: Mapping[str, Tensor], contents: Mapping[str, Any], like: Like) -> dict[str, Tensor]:
    """Restore all tensors by their own names. All ranks must call this.

    Args:
        tensors: The packs and the unpacked tensors, as :func:`pack` returned them.
        contents: The contents of the packs.
        like: Makes the tensor, such as a DTensor, into which a tensor of this name, shape and dtype is copied.
    """
    named = {name: t for name, t in tensors.items() if name not in contents}
    for pack_name, members in contents.items():
        shapes = [torch.Size(shape) for _, shape in members]
        parts = torch.split(tensors[pack_name], [shape.numel() for shape in shapes])
        for (name, _), shape, part in zip(members, shapes, parts, strict=True):
            named[name] = _into(like(name, shape, part.dtype), part.view(shape))
    return named


@torch.no_grad()
def _into(target: Any, value: Tensor) -> Tensor:
    if not shards.is_sharded(target):
        target.copy_(value)
        return target  # type: ignore[no-any-return]
    from torch.distributed.tensor import distribute_tensor

    mesh = target.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, target.placements)
