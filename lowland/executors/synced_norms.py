"""Normalization by statistics of several ranks, which must then be at the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.distributed as dist
from torch import nn

from lowland.core.errors import ParameterError, UsageError


class Synced(NamedTuple):
    """A layer that several ranks compute together: its name, the layer, and the ranks."""

    name: str
    layer: nn.Module
    ranks: list[int]


def synced_norms(model: nn.Module) -> list[Synced]:
    """The layers whose statistics come from several ranks: torch's, and those of others, which are known by name.

    A layer that does not say which ranks counts as one of all ranks.
    """
    found = []
    for name, m in model.named_modules():
        if isinstance(m, nn.SyncBatchNorm) or _called_so(m):
            groups = [getattr(m, key, None) for key in ("process_group", "group")]
            group = next((g for g in groups if isinstance(g, dist.ProcessGroup)), None)
            found.append(Synced(name, m, dist.get_process_group_ranks(group)))
    return [s for s in found if len(s.ranks) > 1]


def _called_so(m: nn.Module) -> bool:
    kind = type(m).__name__.lower()
    return not m._modules and "sync" in kind and ("norm" in kind or "bn" in kind)


def check_mesh(found: Sequence[Synced], groups: Sequence[dist.ProcessGroup]) -> None:
    """Refuse layers that would mix the statistics of the groups of a probe mesh.

    Args:
        found: What :func:`synced_norms` gave.
        groups: The data-parallel groups, whose ranks are at the same weights.

    Raises:
        ParameterError: One spans other ranks.
    """
    for name, layer, ranks in found:
        if ranks not in map(dist.get_process_group_ranks, groups):
            kind = type(layer).__name__
            raise ParameterError(
                f"{kind} must not span the groups of a probe mesh, whose weights differ, but {name} spans all ranks of "
                "its process group; make it with the data-parallel group: "
                'SyncBatchNorm.convert_sync_batchnorm(model, mesh["data"].get_group())'
            )


def check_alone(found: Sequence[Synced], groups: Sequence[dist.ProcessGroup]) -> None:
    """Refuse layers through which the gradient of one rank would depend on the examples and weights of others.

    Args:
        found: What :func:`synced_norms` gave.
        groups: Groups whose ranks share one gradient all the same, as the ranks of a copy under ``fully_shard``.

    Raises:
        UsageError: There is one in training mode.
    """
    for name, layer, ranks in found:
        if layer.training and ranks not in map(dist.get_process_group_ranks, groups):
            raise UsageError(
                f"{type(layer).__name__} must not span ranks whose gradients a method takes apart (mSAM, "
                f"ascent_gradient='local'), because their weights differ, but {name} spans ranks {ranks}; use "
                "BatchNorm, whose running statistics the engine averages, or a method that averages every gradient"
            )
