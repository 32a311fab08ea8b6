"""Dtypes and devices of parameters: which can be perturbed, and that they stay what they were."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.parameter import UninitializedParameter

from lowland.core.errors import ParameterError
from lowland.core.shards import is_sharded
from lowland.core.vec import Vec

_DTYPE, _DEVICE = operator.attrgetter("dtype"), operator.attrgetter("device")


class Kinds:
    """The dtype and the device of every parameter when an engine was made.

    Args:
        names: The names of the parameters.
        params: The parameters.
    """

    def __init__(self, names: Sequence[str], params: Vec) -> None:
        self._names = names
        self._dtypes, self._devices = list(map(_DTYPE, params)), list(map(_DEVICE, params))
        self._different = set(self._dtypes)

    def check(self, params: Vec, each: bool) -> None:
        """Refuse to go on if parameters were converted or moved since.

        Args:
            params: The parameters now.
            each: Look at every one; else at the set of dtypes, and at the first one's device.

        Raises:
            ParameterError: They were.
        """
        if set(map(_DTYPE, params)) != self._different or (each and list(map(_DTYPE, params)) != self._dtypes):
            now = zip(self._names, map(_DTYPE, params), self._dtypes, strict=True)
            raise ParameterError(
                "parameters must keep their dtype, which memory and optimizer have, but since the engine was made "
                f"{some([n for n, a, b in now if a != b])} of another, as after model.float(); convert the model "
                "first, then make the Engine"
            )
        if params[0].device != self._devices[0] or (each and list(map(_DEVICE, params)) != self._devices):
            there = zip(self._names, map(_DEVICE, params), self._devices, strict=True)
            raise ParameterError(
                "parameters must stay on their device, where memory and optimizer are, but since the engine was made "
                f"{some([n for n, a, b in there if a != b])} on another, as after model.cuda(); move the model "
                "first, then make the optimizer and the Engine"
            )


def check_kinds(trainable: dict[str, Any], allow_low_precision: bool) -> None:
    """Refuse parameters that cannot be perturbed reliably.

    Args:
        trainable: The trainable parameters by name.
        allow_low_precision: Accept parameters kept in bf16 or fp16.

    Raises:
        ParameterError: There are such parameters, or none at all.
    """
    if not trainable:
        raise ParameterError(
            "model must have at least one trainable parameter, but has none; "
            "set requires_grad_(True) on what shall learn"
        )
    for name, p in trainable.items():
        if isinstance(p, UninitializedParameter):
            raise ParameterError(
                f"parameters must have a shape, but {name} is uninitialized; run one batch through the model first"
            )
        if hasattr(p, "grad_sample"):
            raise ParameterError(
                f"parameters must have one gradient, but {name} has a grad_sample, one for each example, as Opacus "
                "gives it, whose optimizer does not read .grad; train with the bare model and optimizer"
            )
        if is_sharded(p) and p.device.type != p.device_mesh.device_type:
            raise ParameterError(
                f"shards must be on their mesh's device, but {name} is on {p.device.type} and its mesh on "
                f"{p.device_mesh.device_type}, as with CPUOffloadPolicy; shard the model without offloading"
            )
        if not p.is_floating_point():
            raise ParameterError(
                f"parameters must be real floating-point tensors, but {name} is {p.dtype}; "
                "split complex weights into real and imaginary parts"
            )
        if p.dtype in (torch.bfloat16, torch.float16) and not allow_low_precision:
            raise ParameterError(
                f"parameters must be fp32 or fp64, but {name} is {p.dtype}: rho * g / ||g|| is below its "
                "resolution; keep fp32 weights under torch.autocast, or pass allow_low_precision=True"
            )
        if is_sharded(p) and not all(place.is_shard() or place.is_replicate() for place in p.placements):
            raise ParameterError(
                f"a DTensor parameter must be sharded or replicated, but {name} is placed {p.placements}; redistribute "
                "it before the engine is made"
            )
    devices = {str(p.device) for p in trainable.values()}
    if len(devices) > 1:
        raise ParameterError(
            f"all trainable parameters must be on one device, but are on {', '.join(sorted(devices))}; "
            "move the model to one device"
        )
    if devices == {"meta"}:
        raise ParameterError(
            "parameters must have values, but those of the model are on the meta device, as when weights are offloaded "
            "or not loaded yet; load the model onto one device before the Engine is made"
        )


def some(names: Sequence[str]) -> str:
    """The first of some names with the verb, for a message: "a and b are"."""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"
