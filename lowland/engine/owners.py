"""Detects quickly whether a model's parameters were replaced: by a hook on registrations, and by comparison."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch import nn

Places = tuple[list[dict[str, Any]], list[Any]]


def places(model: nn.Module, names: Sequence[str]) -> Places:
    """The dictionaries on the paths from a model to its parameters, each once, and all their values.

    Args:
        model: The model.
        names: Full names of parameters, as ``named_parameters`` returns them.
    """
    holders: dict[int, dict[str, Any]] = {}
    for name in names:
        *path, last = name.split(".")
        owner = model
        for key in path:
            _add(holders, owner._modules, key)
            owner = owner.get_submodule(key)
        _add(holders, owner._parameters, last)
    return list(holders.values()), list(chain.from_iterable(map(dict.values, holders.values())))


def _add(holders: dict[int, dict[str, Any]], holder: Any, key: str) -> None:
    if isinstance(holder, dict) and key in holder:  # TorchScript modules have no Python dictionaries
        holders[id(holder)] = holder


def in_place(known: Places) -> bool:
    """Whether the dictionaries have the same values as before."""
    holders, values = known
    current = chain.from_iterable(map(dict.values, holders))
    return sum(map(len, holders)) == len(values) and all(map(operator.is_, current, values))
