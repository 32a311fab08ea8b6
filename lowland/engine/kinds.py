"""Checks of the dtypes, devices and layouts of parameters: when an engine is made, and in every step."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from lowland.core import shards
from lowland.core.errors import ParameterError
from lowland.core.shards import is_sharded
from lowland.core.vec import Vec

_DTYPE, _DEVICE = operator.attrgetter("dtype"), operator.attrgetter("device")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Kinds:
    """The dtype and the device of every parameter when an engine was made.

    Args:
        names: The names of the parameters.
        params: The parameters.
    """

    def __init__(self, names: Sequence[str], params: Vec) -> None:
        self._names = names
        self._dtypes, self._devices = list(map(_DTYPE, params)), list(map(_DEVICE, params))
        self._dtype_set = set(self._dtypes)

    def check(self, params: Vec, each: bool) -> None:
        """Refuse parameters whose dtype or device has changed since the engine was made.

        Args:
            params: The current parameters.
            each: Compare every parameter; else only the set of dtypes, and the device of the first parameter.

        Raises:
            ParameterError: A dtype or a device has changed.
        """
        if set(map(_DTYPE, params)) != self._dtype_set or (each and list(map(_DTYPE, params)) != self._dtypes):
            dtypes = zip(self._names, map(_DTYPE, params), self._dtypes, strict=True)
            raise ParameterError(
                "parameters must keep their dtype, which memory and optimizer have, but since the engine was made "
                f"{some([n for n, a, b in dtypes if a != b])} of another, as after model.float(); convert the model "
                "first, then make the Engine"
            )
        if params[0].device != self._devices[0] or (each and list(map(_DEVICE, params)) != self._devices):
            devices = zip(self._names, map(_DEVICE, params), self._devices, strict=True)
            raise ParameterError(
                "parameters must stay on their device, where memory and optimizer are, but since the engine was made "
                f"{some([n for n, a, b in devices if a != b])} on another, as after model.cuda(); move the model "
                "first, then make the optimizer and the Engine"
            )


def check_modules(model: nn.Module) -> None:
    """Refuse a model with modules of TorchScript, whose parts Python does not see.

    Raises:
        ParameterError: A module was made by ``torch.jit.script`` or ``torch.jit.trace``.
    """
    for name, m in model.named_modules():
        if isinstance(m, torch.jit.ScriptModule):
            raise ParameterError(
                f"model must be made of Python modules, but {name or 'it'} is a {type(m).__name__}, as "
                "torch.jit.script and torch.jit.trace make it; train the module that it was made from, compiled by "
                "torch.compile if it must be faster"
            )


def check_kinds(trainable: dict[str, Any]) -> None:
    """Refuse parameters that cannot be perturbed reliably.

    Args:
        trainable: The trainable parameters by name.

    Raises:
        ParameterError: A parameter cannot be perturbed, or the model has no trainable parameter.
    """
    if not trainable:
        raise ParameterError(
            "model must have at least one trainable parameter, but has none; "
            "set requires_grad_(True) on what shall learn"
        )
    for name, p in trainable.items():
        _check_kind(name, p)
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


def _check_kind(name: str, p: Any) -> None:
    """Refuse one parameter.

    Raises:
        ParameterError: It cannot be perturbed reliably.
    """
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
    if p.dtype not in DTYPES:
        raise ParameterError(
            f"parameters must be fp64, fp32, bf16 or fp16, but {name} is {p.dtype}; keep them in one of these and "
            "convert where forward computes"
        )
    if is_sharded(p) and not all(place.is_shard() or place.is_replicate() for place in p.placements):
        raise ParameterError(
            f"a DTensor parameter must be sharded or replicated, but {name} is placed {p.placements}; redistribute "
            "it before the engine is made"
        )
    shard = shards.local([p])[0]
    check_size(name, shard)
    _check_entries(name, p, shard)


def check_size(name: str, shard: Any) -> None:
    """Refuse a parameter that is too large for torch before 2.8 on a GPU, whose list kernels count in 32 bits.

    Args:
        name: The name of the parameter.
        shard: The parameter, or its local shard.

    Raises:
        ParameterError: The parameter is too large.
    """
    if shard.device.type == "cuda" and shard.numel() >= 2**31 and torch.__version__ < "2.8":
        raise ParameterError(
            f"a parameter on a GPU must have fewer than 2**31 entries under torch {torch.__version__}, but {name} has "
            f"{shard.numel()}; update torch to 2.8 or later, or shard the model"
        )


def _check_entries(name: str, p: Any, shard: Any) -> None:
    """Refuse a parameter whose entries share memory, and one whose gradient has another dtype.

    Raises:
        ParameterError: It is such a parameter.
    """
    if getattr(p, "grad_dtype", p.dtype) not in (p.dtype, None):  # not in torch before 2.10
        raise ParameterError(
            f"gradients must have the dtype of their parameter, but {name} is {p.dtype} and its grad_dtype is "
            f"{p.grad_dtype}; leave grad_dtype as it is: vectors of bf16 and fp16 parameters are fp32 anyway"
        )
    strides = zip(shard.stride(), shard.shape, strict=True) if shard.layout is torch.strided else ()
    if shard.numel() > 1 and any(step == 0 and count > 1 for step, count in strides):
        raise ParameterError(
            f"parameters must have a place in memory for each entry, but several entries of {name} share one, as after "
            "expand(); clone it before the model and the optimizer get it: nn.Parameter(tensor.clone())"
        )


def some(names: Sequence[str]) -> str:
    """Up to three names with the verb, for a message: "a, b are"."""
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"
