"""Answers one probe after the other, on the model's device."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing

from lowland.core.errors import UsageError
from lowland.core.probe import Probe, Reading
from lowland.executors import modes
from lowland.executors.base import Executor, Work
from lowland.executors.displacement import check_displacement, displaced
from lowland.executors.passes import Pass

__all__ = ["Local", "Pass", "check_displacement", "displaced", "in_turn"]


class Local(Executor):
    """Answers one probe after the other, each in micro-batches if the engine has ``micro_batch``."""

    def run(self, work: Work, probes: tuple[Probe, ...]) -> tuple[Reading, ...]:
        """See :meth:`Executor.run`."""
        with closing(in_turn(work, probes)) as turns:  # restores random numbers at once, also after an exception
            return tuple([_answer(work, probe) for probe in turns])

    def passes(
        self, work: Work, probes: tuple[Probe, ...], on_error: Callable[[], None] | None = None
    ) -> Generator[Pass, None, tuple[Reading, ...]]:
        """See :meth:`Executor.passes`."""
        readings = []
        with closing(in_turn(work, probes)) as turns:
            for probe in turns:
                current = Pass(work, probe, on_error=on_error)
                yield current
                readings.append(current.answer())
        return tuple(readings)


def in_turn(work: Work, probes: tuple[Probe, ...]) -> Generator[Probe, None, None]:
    """Yield the probes one after the other; probes that are asked together draw from separate random streams."""
    seeds = work.seeds(len(probes))
    if not seeds:
        yield from probes
        return
    for probe, seed in zip(probes, seeds, strict=True):
        with modes.branch(work.device, seed):
            yield probe


def _answer(work: Work, probe: Probe) -> Reading:
    loss_fn = probe.loss_fn or work.loss_fn
    if loss_fn is None:
        raise UsageError(
            "loss_fn is None, so the engine cannot run the model; pass Engine(…, loss_fn=…), or run the passes "
            "yourself: for p in engine.passes(batch): with p: p.backward(loss_fn(model, p.batch))"
        )
    with Pass(work, probe) as p:
        for part in p.parts():
            p.backward(loss_fn(work.model, part))
    if work.step.suspects:
        work.dismiss()
    return p.answer()
