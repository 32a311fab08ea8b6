"""Finds the tensors that a pass may write: buffers, frozen parameters, and tensors in attributes."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lowland.core import shards
from lowland.executors import modes
from lowland.executors.names import OWN, is_array
from lowland.executors.norm_stats import obeys_flag


class Place(NamedTuple):
    """The place of a tensor: ``owner[key]``, where the owner holds a module's buffers, parameters or attributes.

    Attributes:
        owner: The dictionary, or another owner, that holds the tensor.
        key: The tensor's key in the owner.
        name: The name for messages.
        norm: Whether the tensor belongs to a layer with running statistics.
        frozen: Whether the tensor is a parameter that the engine does not train. Such parameters are seldom written,
            and may be large.
    """

    owner: Any
    key: str
    name: str
    norm: bool = False
    frozen: bool = False


class Weights:
    """The memory of a model's trainable parameters, to recognize tensors that share it, such as views."""

    def __init__(self, model: nn.Module | None = None) -> None:
        self._spans: dict[int, list[tuple[int, int]]] = {}
        for p in [] if model is None else model.parameters():
            if p.requires_grad and (span := shards.span(p)) is not None:
                self._spans.setdefault(span[0], []).append(span[1:])

    def __contains__(self, t: Any) -> bool:
        """Whether a tensor shares memory with a weight."""
        if not isinstance(t, Tensor):
            return False
        span = shards.span(t) if self._spans else None
        return span is not None and any(a < span[2] and span[1] < b for a, b in self._spans.get(span[0], ()))


def places_of(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    more: Sequence[tuple[Any, str, str]] = (),
    fused: Container[nn.Module] = (),
) -> list[Place]:
    """All places of a model, of other modules, and of further tensors.

    Args:
        model: The model.
        modules: Modules outside the model that the loss function or the model uses, by name.
        more: ``(owner, key, name)`` of the further tensors.
        fused: Layers with running statistics whose flag does not keep passes from writing them.
    """
    places: list[Place] = []
    in_model = set(model.modules())
    frozen_norms = {m for m in in_model if obeys_flag(m) and m not in fused} - modes.captured(model)
    named = list(model.named_modules())
    for place, m in modules.items():
        named += [(f"{place}.{name}".rstrip("."), inner) for name, inner in m.named_modules() if inner not in in_model]
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    # fully_shard replaces parameters during a pass, so they are no places under it.
    with_parameters = not any(hasattr(m, "_get_fsdp_state") for m in in_model)
    seen: set[int] = set()
    for name, m in named:
        if m in frozen_norms:
            continue
        for owner in (m._buffers, vars(m), m._parameters) if with_parameters else (m._buffers, vars(m)):
            for key, value in list(owner.items()):
                frozen = owner is m._parameters
                if _counts(owner, m, key, value, trained) and id(value) not in seen:
                    places.append(Place(owner, key, f"{name}.{key}".lstrip("."), isinstance(m, _NormBase), frozen))
                    if value is not None:
                        seen.add(id(value))
    of_model = {id(p) for p in model.parameters()}
    for owner, key, name in more:
        value = owner.get(key)
        is_parameter = isinstance(value, nn.Parameter)
        counts = (
            type(value) in shards.ORDINARY and id(value) not in of_model
            if is_parameter
            else (isinstance(value, Tensor) or is_array(value))
        )
        if counts and id(value) not in seen:
            places.append(Place(owner, key, name, frozen=is_parameter))
            seen.add(id(value))
    return places


def _counts(owner: Any, m: nn.Module, key: str, value: Any, trained: Container[int]) -> bool:
    """Whether a module's value is a tensor that the engine does not train, or None, which may be replaced by one."""
    if owner is m._parameters:  # a teacher may require a gradient and never get one
        return type(value) in shards.ORDINARY and id(value) not in trained
    if value is None:
        return owner is m._buffers or key not in OWN
    return isinstance(value, Tensor) or (owner is not m._buffers and is_array(value))
