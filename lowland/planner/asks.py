"""What the steps of a method ask for, read off its plan while it runs."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from lowland.core.batch import Batches
from lowland.core.probe import Probe, Reading
from lowland.executors.base import Work
from lowland.executors.local import Local
from lowland.methods.base import Method
from lowland.planner.costs import BATCH, STEPS, run_specimen


class Pass(NamedTuple):
    """One pass over examples of a step's batch.

    Args:
        examples: The fraction of the batch.
        tensors: The fraction of the parameter tensors that are differentiated; 0 for a forward pass.
        displaced: Whether the weights are displaced.
        synced: Whether ranks that share the batch average its gradient at once.
        entries: The fraction of the parameters' entries that are differentiated; 0 for a forward pass.
        reach: The fraction of the tensors from the first that is differentiated to the last of the model, which is how
            far backward has to go.
    """

    examples: float
    tensors: float
    displaced: bool
    synced: bool
    entries: float = 1.0
    reach: float = 1.0


Ask: TypeAlias = tuple[Pass, ...]
"""Passes that a method asks for together, which do not depend on each other."""

Step: TypeAlias = tuple[Ask, ...]
"""The asks of one step, each of which depends on those before it."""


class Traced(Local):
    """Answers probes one after the other, and writes down what they ask for.

    Args:
        width: How many probes it says that it answers at once, for methods that ask for as many.

    Attributes:
        steps: The asks of every step so far.
    """

    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.width = width
        self.steps: list[Step] = []
        self._examples: int | None = None

    def begin(self, batch: Any) -> None:
        """Begin a step."""
        self.steps.append(())
        self._examples = Batches().known_size(batch)
        super().begin(batch)

    def run(self, work: Work, probes: tuple[Probe, ...]) -> tuple[Reading, ...]:
        """Write down the probes, and answer them."""
        self.steps[-1] = (*self.steps[-1], asked(work, probes, self._examples))
        return super().run(work, probes)


def asked(work: Work, probes: tuple[Probe, ...], examples: int | None) -> Ask:
    """The passes that probes ask for.

    Args:
        work: The model under training.
        probes: Probes that are asked together.
        examples: The examples of the step's batch; None if they are not known.
    """

    def one(probe: Probe) -> Pass:
        size = work.batches.known_size(probe.batch)
        part = 1.0 if size is None or not examples else size / examples
        wrt = [probe.grad] * len(work.params) if probe.wrt is None or not probe.grad else [*probe.wrt]
        chosen = [p.numel() for p, wanted in zip(work.params, wrt, strict=True) if wanted]
        return Pass(
            examples=part,
            tensors=len(chosen) / len(wrt),
            displaced=probe.at is not None,
            synced=probe.grad and probe.sync,
            entries=sum(chosen) / sum(p.numel() for p in work.params),
            reach=(len(wrt) - wrt.index(True)) / len(wrt) if chosen else 1.0,
        )

    return tuple(map(one, probes))


def shape(step: Step) -> tuple[Any, ...]:
    """What makes two steps alike: their passes, whichever tensors these differentiate."""
    return tuple(tuple((round(p.examples, 3), p.tensors > 0, p.displaced) for p in ask) for ask in step)


def size(shape: tuple[Any, ...]) -> float:
    """The examples of all passes of a step of this shape, as a fraction of its batch."""
    return float(sum(examples for ask in shape for examples, *_ in ask))


def read(
    method: Method, *, width: int = 1, examples: int = BATCH, total: int = STEPS, count: int = STEPS
) -> tuple[Step, ...]:
    """The asks of a method's steps in the tiny training that measures its cost.

    The training has :data:`lowland.planner.costs.STEPS` steps, so it has all of a cycle, a warm-up or a late start.
    What a method decides by its gradients may be otherwise on another model.

    Args:
        method: The method.
        width: How many probes the executor answers at once; some methods ask for as many together.
        examples: The examples of a step, which methods see that choose a number of them.
        total: The steps of the training over which :data:`lowland.planner.costs.STEPS` are spread.
        count: So many steps from the first on are read.

    Returns:
        One entry for each step.

    Example:
        >>> from lowland import SAMPa
        >>> len(read(SAMPa())[-1]), len(read(SAMPa())[-1][0])
        (1, 2)
    """
    return _read(method, repr(method), width, examples, total, count)


# The text is part of the cache key, because 1 and 1.0 are equal but can mean different methods (count and fraction).
@lru_cache(maxsize=128)
def _read(method: Method, text: str, width: int, examples: int, total: int, count: int) -> tuple[Step, ...]:
    traced = Traced(width)
    run_specimen(method, count, executor=traced, examples=examples, total=total)
    return tuple(traced.steps)
