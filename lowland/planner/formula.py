"""The time of a method's step as a formula, read off its plan."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from lowland.planner.asks import Pass, Step

KINDS = "tuf"  # letters of the passes, in the order of the terms


def formula(steps: Sequence[Step]) -> str:
    """The mean time of steps on one device.

    ``o`` is the method's own work with the update, ``t(n)`` a gradient over n examples at the weights, ``u(n)`` one at
    displaced weights, ``f(n)`` a forward pass, ``B`` the examples of a step. ``c(q)`` is what a gradient of some of
    the tensors takes of a whole one, with the mean of the fractions q.

    Args:
        steps: The asks of the steps.

    Example:
        >>> from lowland import SAM
        >>> from lowland.planner.asks import read
        >>> formula(read(SAM()))
        'o + t(B) + u(B)'
    """
    fractions: dict[tuple[str, float, bool], list[float]] = defaultdict(list)
    for one in (one for step in steps for ask in step for one in ask):
        fractions[_kind(one), one.examples, 0 < one.tensors < 1].append(one.tensors)
    order = sorted(fractions, key=lambda key: (KINDS.index(key[0]), -key[1], key[2]))
    return " + ".join(["o", *(_term(key, fractions[key], len(steps)) for key in order)])


def _kind(one: Pass) -> str:
    return "f" if not one.tensors else "u" if one.displaced else "t"


def _term(key: tuple[str, float, bool], fractions: Sequence[float], steps: int) -> str:
    """One kind of pass, with how often a step has it."""
    kind, examples, partial = key
    often = _number(len(fractions) / steps)
    part = f"c({_number(sum(fractions) / len(fractions))})" if partial else ""
    size = "B" if examples == 1 else f"{_number(examples)} B"
    return " ".join(filter(None, ["" if often == "1" else often, part, f"{kind}({size})"]))


def _number(value: float) -> str:
    """At most two digits behind the point."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
