"""Everything lowland raises on purpose.

::

    LowlandError
    ├── ArgumentError (ValueError)       an argument breaks its rule
    │   └── UnknownNameError             a name that is not in a registry; the nearest one is suggested
    ├── BatchError (ValueError)          a batch that cannot be measured, cut or used
    ├── LossError (ValueError)           a loss function that returns something unusable
    ├── ParameterError (ValueError)      parameters that model, optimizer and method do not agree on
    ├── StateError (RuntimeError)        a state that does not fit what it is loaded into, or is damaged
    ├── UsageError (RuntimeError)        calls in an order, or through a door, that would give a wrong gradient
    ├── RankError (RuntimeError)         ranks that do not agree on what they are doing
    ├── DataError (RuntimeError)         data files that are missing or not what they should be
    └── MissingExtraError (ImportError)  an optional dependency is not installed

Each message names the argument, the rule, the value and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

ONE_EXAMPLE = "Expected more than 1 value per channel"
"""What torch's batch normalization says of a batch with a single example, in a ValueError."""


class LowlandError(Exception):
    """The common ancestor: ``except LowlandError`` catches all that lowland raises on purpose."""


class ArgumentError(LowlandError, ValueError):
    """An argument breaks its rule."""


class UnknownNameError(ArgumentError):
    """A name that is not in a registry."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        choices = sorted(known)
        plain = {choice.casefold().replace("_", "-"): choice for choice in choices}
        near = difflib.get_close_matches(name.casefold().replace("_", "-"), plain, n=1, cutoff=0.5)
        hint = f"did you mean {plain[near[0]]!r}? " if near else ""
        super().__init__(f"unknown {kind} {name!r}: {hint}known are {', '.join(choices)}")


class BatchError(LowlandError, ValueError):
    """A batch that cannot be measured, cut or used."""


class LossError(LowlandError, ValueError):
    """A loss function that returns something unusable."""


class ParameterError(LowlandError, ValueError):
    """Parameters that model, optimizer and method do not agree on."""


class StateError(LowlandError, RuntimeError):
    """A state that does not fit what it is loaded into, or is damaged."""


class UsageError(LowlandError, RuntimeError):
    """Calls in an order, or through a door, that would give a wrong gradient."""


class RankError(LowlandError, RuntimeError):
    """Ranks that do not agree on what they are doing."""


class DataError(LowlandError, RuntimeError):
    """Data files that are missing or not what they should be."""


class MissingExtraError(LowlandError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'lowland[{extra}]'")
