"""Questions about the loss, and their answers.

A method's plan *yields* a :class:`Probe`, or a tuple of probes that do not depend on each other, and is
*sent* a :class:`Reading`, or a tuple of readings in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from lowland.core.errors import UsageError
from lowland.core.loss import LossFn
from lowland.core.vec import Vec


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A question: what are loss and gradient on ``batch`` at ``w + at``?

    A probe is asked once: the executor empties its list ``at`` as soon as the weights are displaced, so that
    the displacement's memory is free during forward and backward. The list is the probe's own; the vector it
    was made from is not touched.

    Args:
        batch: The examples, as the loss function takes them.
        at: Displacement from the current weights, one tensor per parameter; None stands for none. It may be a function
            that computes it, for probes asked together: only whoever answers this one calls it, and not before. Such
            a function must do nothing but that: on a mesh it is called on some ranks only, so it must not draw
            random numbers, change memory, or talk to ranks of other groups.
        grad: False asks for losses only, which is one forward pass.
        sync: False asks for this rank's own gradient, not the average over data-parallel ranks.
        stats: Whether BatchNorm statistics are updated; None means only where ``at`` is None.
        loss_fn: Another loss than the training loss.
        wrt: Which parameters to differentiate, one bool each; None means all. The others' backward work is
            saved and their entries in the reading are zero.
        cut: Whether ``batch`` is a part of the step's batch, of which a mean alone says nothing exact. None lets the
            engine decide: a batch that is neither the step's nor one in memory is a part.
    """

    batch: Any
    at: Vec | Callable[[], Vec] | None = None
    grad: bool = True
    sync: bool = True
    stats: bool | None = None
    loss_fn: LossFn | None = None
    wrt: Sequence[bool] | None = None
    cut: bool | None = None
    other: bool = field(default=False, init=False)  # whether it is another batch than the step's, cut or kept

    def __post_init__(self) -> None:
        # Statistics are decided now, because `at` is spent by the time anyone else could look.
        object.__setattr__(self, "stats", self.at is None if self.stats is None else self.stats)
        given = self.at is None or _is_function(self.at)
        object.__setattr__(self, "at", self.at if given else _vector(self.at))
        if self.loss_fn is not None and not callable(self.loss_fn):
            raise UsageError(
                f"loss_fn of a Probe must be a function (model, batch) -> loss, but is {self.loss_fn!r}; leave it out "
                "for the training loss"
            )
        if self.wrt is not None and (
            not isinstance(self.wrt, Sequence) or not all(isinstance(wanted, bool) for wanted in self.wrt)
        ):
            raise UsageError(
                f"wrt must hold one bool for each parameter, but is {_short(self.wrt)}; write "
                "[name in chosen for name in engine.names]"
            )

    @torch.no_grad()
    def take_at(self) -> Vec:
        """The displacement as a list to be emptied once the weights have moved; an empty one if it was spent before."""
        at = self.at
        if not _is_function(at):
            return cast(Vec, at or [])
        object.__setattr__(self, "at", [])  # what the function holds is free as soon as it is done
        displacement = cast(Callable[[], Vec], at)()
        if displacement is None:
            raise UsageError("at must be a displacement, or a function that returns one, but it returned None")
        return _vector(displacement)

    def compare(self, batch: Any, kept: Iterable[Any]) -> None:
        """Note whether this batch is the step's ``batch``, one of those ``kept`` in memory, or else a part."""
        object.__setattr__(self, "other", self.batch is not batch)
        if self.cut is None:
            object.__setattr__(self, "cut", self.other and not any(self.batch is whole for whole in kept))

    def discard_at(self) -> None:
        """Forget the displacement, because this probe is answered elsewhere: its memory is free."""
        if self.at is not None:
            object.__setattr__(self, "at", [])


def _vector(at: Any) -> Vec:
    """A displacement as a list of its own.

    Raises:
        UsageError: It is no sequence of tensors; one tensor would be taken for its rows, and a dict for its keys.
    """
    vector = None if isinstance(at, Tensor | dict | str) or not hasattr(at, "__iter__") else list(at)
    if vector is None or not all(issubclass(kind, Tensor) for kind in set(map(type, vector))):
        raise UsageError(
            f"at must be a displacement, one tensor for each parameter, but is {_short(at)}; compute it with "
            "self.ascent(engine, here.grad) or lowland.vec"
        )
    return vector


def _short(value: Any) -> str:
    """A value for a message: a number in full, of all else its kind and, of lists, the kinds inside."""
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {', '.join(dict.fromkeys(type(v).__name__ for v in value)) or 'nothing'}"
    return f"{value!r}" if isinstance(value, int | float | str) else f"a {type(value).__name__}"


def _is_function(at: Any) -> bool:
    return callable(at) and not hasattr(at, "__iter__")  # a ParameterList is both


class Reading(NamedTuple):
    """The answer to a probe.

    Attributes:
        loss: Mean loss, shape ``()``, detached.
        grad: Gradient of the mean loss, one tensor per parameter; zero where backward did not reach a
            parameter; None where the probe asked for losses only.
        losses: One loss per example, shape ``(B,)``, detached; None where the loss function returns a mean or a sum.
        divisor: What the loss is divided by: the number of examples, or the count of a ``Loss``, shape ``()``; None
            where the loss function returns a mean.
        aux: What the loss function returned besides: a list with one entry for each part if the pass ran in several.
        reached: Which parameters backward has reached; None stands for all.
    """

    loss: Tensor
    grad: Vec | None
    losses: Tensor | None
    divisor: Tensor | float | None = None
    aux: Any = None
    reached: list[bool] | None = None


Ask: TypeAlias = "Probe | tuple[Probe, ...]"
Plan: TypeAlias = Generator[Ask, Any, tuple[Tensor, Vec]]


def _kinds(ask: Any) -> str:
    if isinstance(ask, tuple | list):
        return f"a {type(ask).__name__} of {', '.join(type(part).__name__ for part in ask) or 'nothing'}"
    return f"a {type(ask).__name__}"


def conversation(plan: Plan) -> Generator[tuple[Probe, ...], tuple[Reading, ...], tuple[Tensor, Vec]]:
    """Let a plan ask for one probe or several; whoever answers always sees tuples."""
    answer: Any = None
    if not isinstance(plan, Generator):
        raise UsageError(
            f"plan must be a generator, which yields probes and returns (loss, gradient), but is a "
            f"{type(plan).__name__}; ask for at least one reading: here = yield Probe(batch)"
        )
    with closing(plan):
        while True:
            try:
                with torch.no_grad():  # plans compute with weights, too, and need no graph
                    ask = plan.send(answer)
            except StopIteration as done:
                result: tuple[Tensor, Vec] = done.value
                return result
            answer = None  # frees the last readings before the next pass
            if not isinstance(ask, Probe) and not (
                isinstance(ask, tuple | list) and ask and all(isinstance(probe, Probe) for probe in ask)
            ):
                raise UsageError(
                    f"plan must yield a Probe or a tuple of Probes, but yielded {_kinds(ask)}; ask for loss and "
                    "gradient on a batch: here = yield Probe(batch)"
                )
            alone = isinstance(ask, Probe)
            readings = yield (ask,) if isinstance(ask, Probe) else tuple(ask)
            answer = readings[0] if alone else readings
            del ask, readings
