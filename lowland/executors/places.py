"""Where tensors are kept that a pass may write: buffers, frozen parameters, and attributes."""

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
    """Where a tensor is kept: ``owner[key]``, a module's buffers, parameters or attributes.

    Attributes:
        owner: What keeps it.
        key: Under which key.
        name: For messages.
        norm: Whether it belongs to a layer with running statistics.
        frozen: Whether it is a parameter that the engine does not train, so that it is seldom written and may be large.
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

    def __contains__(self, t: Any) -> bool:
        """Whether a tensor shares memory with a weight."""
        if not isinstance(t, Tensor):
            return False
        span = shards.span(t) if self._spans else None
        return span is not None and any(a < span[2] and span[1] < b for a, b in self._spans.get(span[0], ()))


def places_of(
    model: nn.Module, modules: Mapping[str, nn.Module], more: Sequence[tuple[Any, str, str]] = ()
) -> list[Place]:
    """All places of a model, and of what its loss function or the model itself uses beside it.

    Args:
        model: The model.
        modules: Other modules.
        more: ``(owner, key, name)`` of tensors in other places.
    """
    places: list[Place] = []
    own = set(model.modules())
    told = {m for m in own if obeys_flag(m)} - modes.captured(model)
    named = list(model.named_modules())
    for place, m in modules.items():
        named += [(f"{place}.{name}".rstrip("."), part) for name, part in m.named_modules() if part not in own]
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    whole = not any(hasattr(m, "_get_fsdp_state") for m in own)  # fully_shard exchanges parameters during a pass
    seen: set[int] = set()
    for name, m in named:
        if m in told:
            continue
        for owner in (m._buffers, vars(m), m._parameters) if whole else (m._buffers, vars(m)):
            for key, value in list(owner.items()):
                frozen = owner is m._parameters
                if _counts(owner, m, key, value, trained) and id(value) not in seen:
                    places.append(Place(owner, key, f"{name}.{key}".lstrip("."), isinstance(m, _NormBase), frozen))
                    if value is not None:
                        seen.add(id(value))
    for owner, key, name in more:
        value = owner.get(key)
        counts = (isinstance(value, Tensor) and not isinstance(value, nn.Parameter)) or is_array(value)
        if counts and id(value) not in seen:
            places.append(Place(owner, key, name))
            seen.add(id(value))
    return places


def _counts(owner: Any, m: nn.Module, key: str, value: Any, trained: Container[int]) -> bool:
    """Whether what a module keeps is a tensor that the engine does not train, or may become one."""
    if owner is m._parameters:  # a teacher beside the model may well require a gradient that it never gets
        return type(value) in shards.ORDINARY and id(value) not in trained
    if value is None:
        return owner is m._buffers or key not in OWN
    return isinstance(value, Tensor) or (owner is not m._buffers and is_array(value))
