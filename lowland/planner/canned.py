"""Runs a plan without its passes: what remains is the method's own arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lowland.core import vec
from lowland.core.batch import Batches
from lowland.core.probe import Probe, Reading
from lowland.core.vec import Vec
from lowland.executors.base import Executor, Work
from lowland.planner.asks import Pass, Step, asked


@dataclass(frozen=True)
class Recorded:
    """The answer of a pass that was run before.

    Args:
        grad: The gradient, one tensor per parameter.
        losses: One loss per example, shape ``(B,)``; None for a loss function that returns a mean.
        divisor: What the loss was divided by, as in :class:`lowland.Reading`.
        loss: The loss, shape ``()``.
    """

    grad: Vec
    losses: Tensor | None
    divisor: Tensor | float | None
    loss: Tensor


class Canned(Executor):
    """Answers probes with copies of recorded gradients, so that a step is the method's arithmetic alone.

    The copies are made by :meth:`stock`, outside of what is timed: a backward pass makes its gradient, too.

    Args:
        recorded: The recorded answers, at least one; they take turns.
        width: How many probes it says that it answers at once; it moves the weights for the first of them, as a group
            of a mesh does.
        batches: What knows the sizes of batches.

    Attributes:
        steps: The asks of every step so far.
        watch: Called for every probe whose weights it moves, when the displacement is freed and the answer is not yet
            made; None: nothing is called.
    """

    def __init__(self, recorded: Sequence[Recorded], width: int, batches: Batches) -> None:
        self.recorded, self.width, self.batches = recorded, width, batches
        self.steps: list[Step] = []
        self.watch: Callable[[Pass], None] | None = None
        self._stock: list[Vec] = []
        self._next = 0
        self._examples: int | None = None
        self._most = 1  # gradients that a step has needed

    def stock(self) -> None:
        """Copy as many gradients as the largest step so far has needed."""
        while len(self._stock) < self._most:
            self._stock.append(self._copy())

    def begin(self, batch: Any) -> None:
        """Begin a step."""
        self.steps.append(())
        self._examples = self.batches.known_size(batch)

    def run(self, work: Work, probes: tuple[Probe, ...]) -> tuple[Reading, ...]:
        """Write down the probes, and answer them with copies."""
        ask = asked(work, probes, self._examples)
        self.steps[-1] = (*self.steps[-1], ask)
        work.step.reach(None)
        for number, probe in enumerate(probes):
            if number % self.width:
                probe.discard_at()  # another group answers it, see Mesh
        return tuple(
            self._answer(work, probe, one, watched=number % self.width == 0)
            for number, (probe, one) in enumerate(zip(probes, ask, strict=True))
        )

    def _answer(self, work: Work, probe: Probe, one: Pass, *, watched: bool) -> Reading:
        probe.take_at().clear()
        if watched and self.watch is not None:
            work.examples.before_pass(probe.batch)  # the first step keeps a copy of the batch
            self.watch(one)
        answer = self.recorded[self._next % len(self.recorded)]
        size = self.batches.known_size(probe.batch)
        losses = None if answer.losses is None or size is None else _repeated(answer.losses, size)
        loss = answer.loss if losses is None else losses.mean()
        grad = self._gradient() if probe.grad else None
        if grad is not None and probe.wrt is not None:
            for g, chosen in zip(grad, probe.wrt, strict=True):
                if not chosen:
                    g.zero_()  # the copy's own memory: new tensors would count beside it
        return Reading(loss, grad, losses, answer.divisor if losses is None else size, None, None)

    def _gradient(self) -> Vec:
        self._most = max(self._most, sum(len(ask) for ask in self.steps[-1]))
        return self._stock.pop() if self._stock else self._copy()

    def _copy(self) -> Vec:
        self._next += 1
        return vec.clone(self.recorded[self._next % len(self.recorded)].grad)


def _repeated(losses: Tensor, size: int) -> Tensor:
    """As many losses as a batch of ``size`` examples has."""
    return losses.repeat(-(-size // len(losses)))[:size]
