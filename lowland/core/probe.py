"""Questions about the loss, and their answers.

A method's plan *yields* a :class:`Probe`, or a tuple of probes that do not depend on each other, and is
*sent* a :class:`Reading`, or a tuple of readings in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from random import Random
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
        at: The displacement from the current weights, one tensor per parameter; None means no displacement. For probes
            asked together it may be a function that computes the displacement. The executor calls it when it answers
            the probe, on a mesh on some ranks only. So the function must not draw random numbers, change memory, or
            communicate with ranks of other groups.
        grad: False asks for losses only, which is one forward pass.
        sync: False asks for this rank's own gradient, not the average over data-parallel ranks.
        stats: Whether BatchNorm statistics are updated; None means only if ``at`` is None.
        loss_fn: Another loss than the training loss.
        wrt: Which parameters to differentiate, one bool each; None means all. The others need no backward work, and
            their entries in the reading are zero.
        cut: Whether ``batch`` is a part of the step's batch, so that the loss must give its weight. None lets the
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
    other: bool = field(default=False, init=False)  # whether the batch is another one than the step's, cut or kept
    noise: int | None = field(default=None, init=False)  # the seed of stochastic rounding, for bf16 and fp16 parameters

    def __post_init__(self) -> None:
        # `stats` is set here, because the executor empties `at` later.
        object.__setattr__(self, "stats", self.at is None if self.stats is None else self.stats)
        is_final = self.at is None or _is_function(self.at)
        object.__setattr__(self, "at", self.at if is_final else _vector(self.at))
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
        """The displacement as a list, which the caller empties after the weights have moved; empty on a second call."""
        at = self.at
        if not _is_function(at):
            return cast(Vec, at or [])
        object.__setattr__(self, "at", [])  # so that the function's tensors are freed after the call
        displacement = cast(Callable[[], Vec], at)()
        if displacement is None:
            raise UsageError("at must be a displacement, or a function that returns one, but it returned None")
        return _vector(displacement)

    def compare(self, batch: Any, kept: Iterable[Any]) -> None:
        """Set ``other`` and ``cut`` by comparing this batch with the step's ``batch`` and those ``kept`` in memory."""
        object.__setattr__(self, "other", self.batch is not batch)
        if self.cut is None:
            object.__setattr__(self, "cut", self.other and not any(self.batch is value for value in kept))

    def draw(self, rng: Random) -> None:
        """Draw the seed with which displaced weights in bf16 or fp16 are rounded; the same on all ranks."""
        if self.at is not None:
            object.__setattr__(self, "noise", rng.getrandbits(32))

    def discard_at(self) -> None:
        """Drop the displacement to free its memory, because another rank answers this probe."""
        if self.at is not None:
            object.__setattr__(self, "at", [])


def _vector(at: Any) -> Vec:
    """A displacement as a new list.

    Raises:
        UsageError: It is not a sequence of tensors, for example a single tensor or a dict.
    """
    vector = None if isinstance(at, Tensor | dict | str) or not hasattr(at, "__iter__") else list(at)
    if vector is None or not all(issubclass(kind, Tensor) for kind in set(map(type, vector))):
        raise UsageError(
            f"at must be a displacement, one tensor for each parameter, but is {_short(at)}; compute it with "
            "self.ascent(engine, here.grad) or lowland.vec"
        )
    return vector


def _short(value: Any) -> str:
    """A value for a message: a number or text itself, else its type; for lists also the types of the entries."""
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {', '.join(dict.fromkeys(type(v).__name__ for v in value)) or 'nothing'}"
    return f"{value!r}" if isinstance(value, int | float | str) else f"a {type(value).__name__}"


def _is_function(at: Any) -> bool:
    return callable(at) and not hasattr(at, "__iter__")  # a ParameterList is both


class Reading(NamedTuple):
    """The answer to a probe.

    Attributes:
        loss: Mean loss, shape ``()``, detached.
        grad: Gradient of the mean loss, one tensor per parameter; zero for parameters that backward did not reach;
            None if the probe asked for losses only.
        losses: One loss per example, shape ``(B,)``, detached; None if the loss function returns a mean or a sum.
        divisor: The divisor of the loss: the number of examples, or the count of a ``Loss``, shape ``()``; None if
            the loss function returns a mean.
        aux: The auxiliary output of the loss function; a list with one entry per part if the pass ran in several parts.
        reached: Which parameters backward has reached; None means all.
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
    """Run a plan, which yields one probe or several, as a generator that always yields tuples of probes."""
    answer: Any = None
    if not isinstance(plan, Generator):
        raise UsageError(
            f"plan must be a generator, which yields probes and returns (loss, gradient), but is a "
            f"{type(plan).__name__}; ask for at least one reading: here = yield Probe(batch)"
        )
    with closing(plan):
        while True:
            try:
                with torch.no_grad():  # plans compute with weights and need no graph
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
