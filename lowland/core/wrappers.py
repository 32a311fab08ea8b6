"""Wrappers of models: who averages gradients, and what a parameter is called without them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from lowland.core.errors import ParameterError
from lowland.core.vec import Vec


def ddps_of(model: nn.Module, params: Vec) -> list[DistributedDataParallel]:
    """The wrappers that average gradients during backward, wherever they sit in the model.

    Raises:
        ParameterError: They leave out a trainable parameter, average over different ranks, or are of another kind.
    """
    for m in model.modules():
        if type(m).__name__ == "FullyShardedDataParallel":
            raise ParameterError(
                "model must not be wrapped in FullyShardedDataParallel, whose flat parameters hide the tensors a "
                "method works on; use torch.distributed.fsdp.fully_shard(model)"
            )
    ddps = [m for m in model.modules() if isinstance(m, DistributedDataParallel)]
    if not ddps:
        return []
    inside = {id(p) for ddp in ddps for p in ddp.parameters()}
    names = {id(p): name for name, p in model.named_parameters()}
    outside = [names.get(id(p), "a parameter") for p in params if id(p) not in inside]
    if outside:
        raise ParameterError(
            "DistributedDataParallel must hold all trainable parameters, but only a part of the model is wrapped and "
            f"{outside[0]} is outside; wrap the model itself: DistributedDataParallel(model)"
        )
    if any(ddp.process_group is not ddps[0].process_group for ddp in ddps):
        raise ParameterError(
            "all modules must be averaged over the same ranks, but their DistributedDataParallel wrappers have "
            "different process groups; give them one process_group"
        )
    return ddps


def short_names(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Names of parameters without the segments that wrappers add, if they stay different."""
    kinds = (DataParallel, DistributedDataParallel)
    prefixes = [f"{name}.module.".lstrip(".") for name, m in model.named_modules() if isinstance(m, kinds)]
    short = []
    for name in names:
        for prefix in sorted(prefixes, key=len, reverse=True):
            if name.startswith(prefix):
                name = prefix.removesuffix("module.") + name.removeprefix(prefix)
        short.append(name.replace("_orig_mod.", "").replace("_forward_module.", ""))
    return short if len(set(short)) == len(short) else list(names)
