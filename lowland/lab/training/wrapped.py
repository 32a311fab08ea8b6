"""Wraps a model for training on several ranks, and unwraps it for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lowland.core import shards
from lowland.parallel import World


def wrap(model: nn.Module, world: World, *, shard: bool) -> nn.Module:
    """The model for training on this rank: in DistributedDataParallel, sharded, or unchanged.

    Args:
        model: The model, on its device.
        world: The ranks. Without a data dimension in their mesh the model is unchanged.
        shard: Shard the weights over the data dimension.
    """
    data = world.along("data")
    if data is None:
        return model
    if not shard:
        return DistributedDataParallel(model, process_group=data.get_group())
    from torch.distributed.fsdp import fully_shard

    for child in _called(model):  # children are gathered one at a time
        if any(True for _ in child.parameters()):
            fully_shard(child, mesh=data)
    fully_shard(model, mesh=data)
    return model


def _called(module: nn.Module) -> Iterator[nn.Module]:
    """The children that have a forward of their own; of containers such as ``ModuleList``, their children."""
    for child in module.children():
        if type(child).forward is nn.Module.forward:
            yield from _called(child)
        else:
            yield child


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their names in the unwrapped model; sharded tensors are DTensors."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    state: dict[str, Tensor] = inner.state_dict()
    return state


class Unwrapped:
    """The unwrapped model, with all its weights on every rank.

    Args:
        model: The model in training.
        build: Makes an unwrapped model, which receives the gathered weights of a sharded model.
    """

    def __init__(self, model: nn.Module, build: Callable[[], nn.Module]) -> None:
        self._model, self._build = model, build

    @torch.no_grad()
    def __call__(self) -> nn.Module:
        """The unwrapped model with the current weights. All ranks must call this if the model is sharded."""
        if isinstance(self._model, DistributedDataParallel):
            inner: nn.Module = self._model.module
            return inner
        state = self._model.state_dict()
        if not any(map(shards.is_sharded, state.values())):
            return self._model
        with torch.random.fork_rng(devices=[]):  # models are made on the CPU
            copy = self._build()  # not cached: a rank with sharded weights has no memory for a copy during training
        copy.load_state_dict({n: shards.gathered(t) for n, t in state.items()})
        return copy.train(self._model.training)
