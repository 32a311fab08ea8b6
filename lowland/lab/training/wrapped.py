"""A model for one rank among several: wrapped where a batch is divided, and whole again for its evaluation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lowland.core import shards
from lowland.parallel import World


def wrap(model: nn.Module, world: World, *, shard: bool) -> nn.Module:
    """The model as this rank trains it: under DistributedDataParallel, sharded, or as it is.

    Args:
        model: The model, on its device.
        world: The ranks. Where their mesh has no data dimension, nothing is wrapped.
        shard: Divide the weights over the data dimension.
    """
    data = world.along("data")
    if data is None:
        return model
    if not shard:
        return DistributedDataParallel(model, process_group=data.get_group())
    from torch.distributed.fsdp import fully_shard

    for child in model.children():  # gathered one after the other, not all at once
        if any(True for _ in child.parameters()):
            fully_shard(child, mesh=data)
    fully_shard(model, mesh=data)
    return model


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their names in the unwrapped model; DTensors where they are sharded."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    state: dict[str, Tensor] = inner.state_dict()
    return state


class Unwrapped:
    """The unwrapped model, with all its weights on every rank.

    Args:
        model: As it is trained.
        build: Makes an unwrapped one, in whose place sharded weights are gathered.
    """

    def __init__(self, model: nn.Module, build: Callable[[], nn.Module]) -> None:
        self._model, self._build = model, build

    @torch.no_grad()
    def __call__(self) -> nn.Module:
        """The model at its present weights. All ranks of a sharded one call this."""
        if isinstance(self._model, DistributedDataParallel):
            inner: nn.Module = self._model.module
            return inner
        state = self._model.state_dict()
        if not any(map(shards.is_sharded, state.values())):
            return self._model
        with torch.random.fork_rng():
            copy = self._build()  # gone after use: a rank that shards has no room for it while it trains
        copy.load_state_dict({n: shards.gathered(t) for n, t in state.items()})
        return copy.train(self._model.training)
