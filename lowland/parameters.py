"""Which parameters a method works on, and what model and optimizer must agree on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from lowland import checks
from lowland.errors import ParameterError
from lowland.geometry import Geometry, Radii
from lowland.shards import is_sharded


class Parameters:
    """The trainable parameters of a model, with their names and their groups in the optimizer.

    Args:
        model: The model.
        optimizer: The optimizer that steps its parameters.
        allow_low_precision: Accept parameters kept in bf16 or fp16.

    Raises:
        ParameterError: Model and optimizer disagree, or the parameters cannot be perturbed reliably.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, *, allow_low_precision: bool = False) -> None:
        named = dict(model.named_parameters())
        trainable = {n: p for n, p in named.items() if p.requires_grad}
        self.frozen = [p for p in named.values() if not p.requires_grad]
        # torch.compile and DataParallel prefix names; a checkpoint should not know of them.
        outer = getattr(model, "_orig_mod", model)
        wrapper = "module." if isinstance(outer, DataParallel | DistributedDataParallel) else ""
        short = [n.replace("_orig_mod.", "").removeprefix(wrapper) for n in trainable]
        self.names = short if len(set(short)) == len(short) else list(trainable)
        self.vec: list[Tensor] = list(trainable.values())
        _check_kinds(trainable, allow_low_precision)
        _check_owned(named, trainable, optimizer)
        place = {id(p): k for k, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self.group = [place[id(p)] for p in self.vec]
        self.group_sizes = _sizes(optimizer)
        self._owners = [model.get_submodule(n.rpartition(".")[0]) for n in trainable]
        self._selected: dict[Geometry, list[bool]] = {}

    def check_unchanged(self, optimizer: Optimizer) -> None:
        """Refuse to go on if parameters were added or unfrozen since.

        Raises:
            ParameterError: They were.
        """
        if _sizes(optimizer) != self.group_sizes or any(p.requires_grad for p in self.frozen):
            raise ParameterError(
                "the trainable parameters must stay those the engine was made with, but a parameter was added "
                "or unfrozen since; make a new Engine from the same method, model and optimizer"
            )

    def radii(self, value: float, geometry: Geometry, optimizer: Optimizer) -> Radii:
        """The radius for every parameter: a number where all share it, else one each, 0 for excluded ones.

        Args:
            value: The method's radius.
            geometry: Its predicate excludes parameters.
            optimizer: A group's ``"rho"`` overrides ``value`` for the group's parameters.
        """
        # Some optimizers, Adadelta for one, have a hyperparameter of their own that is called rho.
        own = "rho" in optimizer.defaults
        chosen = [value if own or g.get("rho") is None else g["rho"] for g in optimizer.param_groups]
        for k, radius in enumerate(chosen):
            checks.at_least(f'param_groups[{k}]["rho"]', radius, 0, "rho=0 leaves the group unperturbed")
        if geometry.select is None and all(c == value for c in chosen):
            return value
        return [chosen[k] if s else 0.0 for k, s in zip(self.group, self.select(geometry), strict=True)]

    def select(self, geometry: Geometry) -> list[bool]:
        """Which parameters a geometry's predicate accepts; asked once for every geometry."""
        select = geometry.select
        if select is None:
            return [True] * len(self.vec)
        if geometry not in self._selected:
            found = zip(self._owners, self.names, self.vec, strict=True)
            self._selected[geometry] = [bool(select(m, n, p)) for m, n, p in found]
        return self._selected[geometry]


def _sizes(optimizer: Optimizer) -> list[int]:
    return [len(group["params"]) for group in optimizer.param_groups]


def _check_kinds(trainable: dict[str, Any], allow_low_precision: bool) -> None:
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


def _check_owned(named: dict[str, Any], trainable: dict[str, Any], optimizer: Optimizer) -> None:
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [n for n, p in trainable.items() if id(p) not in owned]
    if missing:
        raise ParameterError(
            f"every trainable parameter of the model must be in the optimizer, but {_some(missing)} "
            "missing; add them to a parameter group (with rho=0 to leave them unperturbed) or freeze them with "
            "requires_grad_(False)"
        )
    known = {id(p) for p in named.values()}
    foreign = [
        f"group {k}, number {i}, shape {tuple(p.shape)}"
        for k, group in enumerate(optimizer.param_groups)
        for i, p in enumerate(group["params"])
        if id(p) not in known and p.requires_grad
    ]
    if foreign:
        raise ParameterError(
            f"every trainable parameter in the optimizer must belong to the model, but {_some(foreign)} "
            "foreign to it; put all that is trained into one nn.Module and pass that, or use a second optimizer"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"
