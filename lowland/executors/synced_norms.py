"""Checks of normalization layers that combine statistics over ranks: these ranks must have equal weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.distributed as dist
from torch import nn

from lowland.core.errors import ParameterError, UsageError


class Synced(NamedTuple):
    """A layer that combines statistics over ranks: its name, the layer, and the ranks."""

    name: str
    layer: nn.Module
    ranks: list[int]


def synced_norms(model: nn.Module) -> list[Synced]:
    """The layers of a model that combine statistics over several ranks.

    They are torch's SyncBatchNorm, and layers of other packages whose class names contain "sync" and "norm" or "bn".
    Without a process group, a layer combines the statistics of all ranks.
    """
    synced = []
    for name, m in model.named_modules():
        if isinstance(m, nn.SyncBatchNorm) or _named_synced(m):
            groups = [getattr(m, key, None) for key in ("process_group", "group")]
            # WORLD, not None, because torch 2.6 does not accept None for all ranks.
            group = next((g for g in groups if isinstance(g, dist.ProcessGroup)), dist.group.WORLD)
            synced.append(Synced(name, m, dist.get_process_group_ranks(group)))
    return [s for s in synced if len(s.ranks) > 1]


def _named_synced(m: nn.Module) -> bool:
    kind = type(m).__name__.lower()
    return not m._modules and "sync" in kind and ("norm" in kind or "bn" in kind)


def check_mesh(synced: Sequence[Synced], groups: Sequence[dist.ProcessGroup]) -> None:
    """Refuse layers that would mix the statistics of the groups of a probe mesh.

    Args:
        synced: The layers, from :func:`synced_norms`.
        groups: The data-parallel groups, whose ranks have equal weights.

    Raises:
        ParameterError: A layer's ranks are not those of a data-parallel group.
    """
    for name, layer, ranks in synced:
        if ranks not in map(dist.get_process_group_ranks, groups):
            kind = type(layer).__name__
            raise ParameterError(
                f"{kind} must not span the groups of a probe mesh, whose weights differ, but {name} spans all ranks of "
                "its process group; make it with the data-parallel group: "
                'SyncBatchNorm.convert_sync_batchnorm(model, mesh["data"].get_group())'
            )


def check_alone(synced: Sequence[Synced], groups: Sequence[dist.ProcessGroup]) -> None:
    """Refuse layers through which the gradient of one rank would depend on the examples and weights of others.

    Args:
        synced: The layers, from :func:`synced_norms`.
        groups: Groups whose ranks always share one gradient, such as the ranks of one copy under ``fully_shard``.

    Raises:
        UsageError: Such a layer is in training mode.
    """
    for name, layer, ranks in synced:
        if layer.training and ranks not in map(dist.get_process_group_ranks, groups):
            raise UsageError(
                f"{type(layer).__name__} must not span ranks whose gradients a method takes apart (mSAM, "
                f"ascent_gradient='local'), because their weights differ, but {name} spans ranks {ranks}; use "
                "BatchNorm, whose running statistics the engine averages, or a method that averages every gradient"
            )
