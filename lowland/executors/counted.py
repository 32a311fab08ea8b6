"""What a method really costs, counted while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from lowland.core.batch import Batches
from lowland.core.probe import Probe, Reading
from lowland.executors.base import Executor, Work
from lowland.executors.local import Local


@dataclass
class Cost:
    """Sums over all steps so far.

    Attributes:
        steps: Steps completed.
        probes: Probes answered.
        examples: Examples in them.
        forwards: Forward passes, in multiples of the step's batch.
        gradients: Backward passes, in multiples of the step's batch: the unit of papers.
        weights: Gradients, each weighed by the share of parameter tensors it differentiates: one for all of them
            counts 1, one that asks for a fifth of them 0.2.
        sequential: Gradients on the critical path: of probes asked together, the largest.
        reduces: All-reduces of P numbers that data parallelism needs: one for each synchronized gradient, and
            one for what a step returns where it has unsynchronized ones.
        bytes: Bytes exchanged with other processes.
        seconds: Time spent in probes.
    """

    steps: int = 0
    probes: int = 0
    examples: int = 0
    forwards: float = 0.0
    gradients: float = 0.0
    sequential: float = 0.0
    reduces: int = 0
    bytes: int = 0
    seconds: float = 0.0
    weights: float = 0.0


class Counted(Executor):
    """Wraps any executor and adds up what its probes cost.

    Args:
        inner: The executor that answers; a :class:`Local` by default.
        batches: Knows the sizes of batches.

    Attributes:
        cost: The sums so far.
    """

    def __init__(self, inner: Executor | None = None, batches: Batches | None = None) -> None:
        self.inner = inner or Local()
        self.batches = batches or Batches()
        self.width = self.inner.width
        self.cost = Cost()
        self._whole = 1
        self._sent = 0
        self._work: Work | None = None
        self._unsynced = False

    def begin(self, batch: Any) -> None:
        """A step on ``batch`` begins: its size is the unit in which gradients are counted."""
        self._whole = self._examples(batch)
        self._unsynced = False
        self.inner.begin(batch)

    def count(self, probes: tuple[Probe, ...]) -> None:
        """Add probes that are asked together."""
        cost = self.cost
        sizes = [self._examples(p.batch) for p in probes]
        cost.probes += len(probes)
        cost.examples += sum(sizes)
        cost.forwards += sum(sizes) / self._whole
        differentiated = [n for n, p in zip(sizes, probes, strict=True) if p.grad]
        cost.gradients += sum(differentiated) / self._whole
        cost.weights += sum(n * _share(p) for n, p in zip(sizes, probes, strict=True) if p.grad) / self._whole
        cost.sequential += max(differentiated, default=0) / self._whole
        cost.reduces += sum(p.grad and p.sync for p in probes)
        self._unsynced |= any(p.grad and not p.sync for p in probes)

    def end(self) -> None:
        """The step is complete."""
        self.cost.steps += 1
        self.cost.reduces += self._unsynced
        self.inner.end()
        sent = self.inner.sent + (self._work.replicas.bytes if self._work is not None else 0)
        self.cost.bytes += sent - self._sent
        self._sent = sent

    def run(self, work: Work, probes: tuple[Probe, ...]) -> tuple[Reading, ...]:
        """See :meth:`Executor.run`."""
        self.count(probes)
        self._work = work
        start = time.perf_counter()
        readings = self.inner.run(work, probes)
        self.cost.seconds += time.perf_counter() - start
        return readings

    def passes(
        self, work: Work, probes: tuple[Probe, ...], on_error: Callable[[], None] | None = None
    ) -> Generator[Any, None, tuple[Reading, ...]]:
        """See :meth:`Executor.passes`."""
        self.count(probes)
        self._work = work
        return (yield from self.inner.passes(work, probes, on_error))

    def _examples(self, batch: Any) -> int:
        """The number of examples; a batch of unknown size, which nobody can cut, counts as a whole one."""
        return self.batches.known_size(batch) or 1


def _share(probe: Probe) -> float:
    return 1.0 if probe.wrt is None else sum(probe.wrt) / len(probe.wrt)
