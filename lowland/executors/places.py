"""The places of tensors that a pass may write: buffers, frozen parameters, and attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lowland.core import shards
from lowland.executors import modes
from lowland.executors.norm_stats import obeys_flag
from lowland.executors.uses import OWN

ABSENT = object()  # the value of a place that does not exist


class Place(NamedTuple):
    """The place ``owner[key]`` of a tensor, such as an entry of a module's buffers, parameters or attributes.

    Attributes:
        owner: A dictionary, or an object with its interface.
        key: The key.
        name: The name for messages.
        norm: Whether the tensor belongs to a layer with running statistics.
        frozen: Whether the tensor is a frozen parameter, which is rarely written and may be large.
    """

    owner: Any
    key: str
    name: str
    norm: bool = False
    frozen: bool = False


class Weights:
    """The memory of a model's trainable parameters: other tensors in it, such as views, move and return with them."""

    def __init__(self, model: nn.Module | None = None) -> None:
        self._spans: dict[int, list[tuple[int, int]]] = {}
        for p in [] if model is None else model.parameters():
            if p.requires_grad and (span := shards.span(p)) is not None:
                self._spans.setdefault(span[0], []).append(span[1:])

    def __contains__(self, t: Tensor) -> bool:
        """Whether a tensor shares memory with a weight."""
        span = shards.span(t) if self._spans else None
        return span is not None and any(a < span[2] and span[1] < b for a, b in self._spans.get(span[0], ()))


def tensor_places(
    model: nn.Module, modules: Mapping[str, nn.Module], more: Sequence[tuple[Any, str, str]] = ()
) -> list[Place]:
    """The places of all tensors, except trainable parameters, of a model and of other modules and objects.

    Args:
        model: The model.
        modules: Other modules, by name, that the model or the loss function uses.
        more: ``(owner, key, name)`` of tensors in other places.
    """
    places: list[Place] = []
    own = set(model.modules())
    flagged = {m for m in own if obeys_flag(m)} - modes.captured(model)  # see frozen_stats
    named = list(model.named_modules())
    for place, m in modules.items():
        named += [(f"{place}.{name}".rstrip("."), part) for name, part in m.named_modules() if part not in own]
    unsharded = not any(hasattr(m, "_get_fsdp_state") for m in own)  # fully_shard replaces parameters during a pass
    seen: set[int] = set()
    for name, m in named:
        if m in flagged:
            continue
        for owner in (m._buffers, vars(m), m._parameters) if unsharded else (m._buffers, vars(m)):
            for key, value in list(owner.items()):
                frozen = owner is m._parameters
                if _counts(owner, m, key, value) and id(value) not in seen:
                    places.append(Place(owner, key, f"{name}.{key}".lstrip("."), isinstance(m, _NormBase), frozen))
                    if value is not None:
                        seen.add(id(value))
    for owner, key, name in more:
        value = owner.get(key)
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and id(value) not in seen:
            places.append(Place(owner, key, f"loss_fn: {name}"))
            seen.add(id(value))
    return places


def _counts(owner: Any, m: nn.Module, key: str, value: Any) -> bool:
    """Whether an entry of a module is a tensor that is not trained, or None that forward may replace by a tensor."""
    if owner is m._parameters:
        return type(value) in shards.ORDINARY and not value.requires_grad
    if value is None:
        return owner is m._buffers or key not in OWN
    return isinstance(value, Tensor)
