"""Where a model keeps its parameters, remembered so that a change of place is noticed in microseconds."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import nn

Place = tuple[dict[str, Any], str, Any]
Places = tuple[list[dict[str, Any]], list[str], list[Any]]


def places(model: nn.Module, names: Sequence[str]) -> Places:
    """The dictionaries, keys and values that lead from a model to its parameters, each once.

    Args:
        model: The model.
        names: Full names of parameters, as ``named_parameters`` gives them.
    """
    found: dict[tuple[int, str], Place] = {}
    for name in names:
        *path, last = name.split(".")
        owner = model
        for key in path:
            _add(found, owner._modules, key)
            owner = owner.get_submodule(key)
        _add(found, owner._parameters, last)
    return ([p[0] for p in found.values()], [p[1] for p in found.values()], [p[2] for p in found.values()])


def _add(found: dict[tuple[int, str], Place], held: Any, key: str) -> None:
    if isinstance(held, dict) and key in held:  # TorchScript keeps them in C++
        found[id(held), key] = held, key, held[key]


def in_place(known: Places) -> bool:
    """Whether all of them are where they were."""
    holders, keys, values = known
    return all(map(operator.is_, map(dict.get, holders, keys), values))  # no call of Python's own for each
