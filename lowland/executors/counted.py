"""Counts what a method costs while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from lowland.core.batch import Batches
from lowland.core.probe import Probe, Reading
from lowland.core.transfer import has_streams
from lowland.executors.base import Executor, Work
from lowland.executors.local import Local


@dataclass
class Cost:
    """The costs of all steps so far.

    Attributes:
        steps: The number of completed steps.
        probes: The number of probes.
        examples: The number of examples in all probes.
        forwards: Forward passes, in multiples of the step's batch.
        gradients: Backward passes, in multiples of the step's batch, which is the unit of papers.
        weights: Gradients, each weighted by the fraction of parameter tensors that it covers: a gradient of a fifth of
            the tensors counts 0.2.
        sequential: Gradients on the critical path: of probes that are asked together, only the largest counts.
        reduces: All-reduces of P numbers under data parallelism: one for each synchronized gradient, and one for the
            result of each step with unsynchronized gradients.
        bytes: Bytes sent to other processes.
        seconds: The time spent in probes; None on a GPU, which computes them later.
    """

    steps: int = 0
    probes: int = 0
    examples: int = 0
    forwards: float = 0.0
    gradients: float = 0.0
    sequential: float = 0.0
    reduces: int = 0
    bytes: int = 0
    seconds: float | None = 0.0
    weights: float = 0.0


class Counted(Executor):
    """Counts the costs of the probes that another executor answers.

    Args:
        inner: The other executor; a :class:`Local` by default.
        batches: Gives the sizes of batches.

    Attributes:
        cost: The costs so far.
    """

    def __init__(self, inner: Executor | None = None, batches: Batches | None = None) -> None:
        self.inner = inner or Local()
        self.batches = batches or Batches()
        self.width, self.substitutes = self.inner.width, self.inner.substitutes
        self.cost = Cost()
        self._step_examples = 1
        self._sent = 0
        self._work: Work | None = None
        self._unsynced = False

    def begin(self, batch: Any) -> None:
        """Begin a step on ``batch``, whose size is the unit of gradients."""
        self._step_examples = self._examples(batch)
        self._unsynced = False
        self.inner.begin(batch)
        self.width, self.substitutes = self.inner.width, self.inner.substitutes  # Auto changes them

    def count(self, probes: tuple[Probe, ...]) -> None:
        """Add the costs of probes that are asked together."""
        cost = self.cost
        sizes = [self._examples(p.batch) for p in probes]
        cost.probes += len(probes)
        cost.examples += sum(sizes)
        cost.forwards += sum(sizes) / self._step_examples
        differentiated = [n for n, p in zip(sizes, probes, strict=True) if p.grad]
        cost.gradients += sum(differentiated) / self._step_examples
        cost.weights += (
            sum(n * _fraction(p) for n, p in zip(sizes, probes, strict=True) if p.grad) / self._step_examples
        )
        cost.sequential += max(differentiated, default=0) / self._step_examples
        cost.reduces += sum(p.grad and p.sync for p in probes)
        self._unsynced |= any(p.grad and not p.sync for p in probes)

    def end(self) -> None:
        """Complete the step."""
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
        if has_streams(work.device):
            self.cost.seconds = None
        elif self.cost.seconds is not None:
            self.cost.seconds += time.perf_counter() - start
        return readings

    def passes(
        self, work: Work, probes: tuple[Probe, ...], on_error: Callable[[], None] | None = None
    ) -> Generator[Any, None, tuple[Reading, ...]]:
        """See :meth:`Executor.passes`."""
        self.count(probes)
        self._work = work
        return (yield from self.inner.passes(work, probes, on_error))

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Executor.state_dict`."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """See :meth:`Executor.load_state_dict`."""
        self.inner.load_state_dict(state_dict)
        self.width, self.substitutes = self.inner.width, self.inner.substitutes

    def _examples(self, batch: Any) -> int:
        """The number of examples of a batch; 1 for a batch of unknown size, which cannot be cut."""
        return self.batches.known_size(batch) or 1


def _fraction(probe: Probe) -> float:
    return 1.0 if probe.wrt is None else sum(probe.wrt) / len(probe.wrt)
