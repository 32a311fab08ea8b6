"""Answers the probes of one tuple together or one after the other, whichever is measured to be faster."""

from __future__ import annotations

import copy
import math
import statistics
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from time import perf_counter
from typing import Any

import torch

from lowland.core.errors import StateError
from lowland.core.probe import Probe, Reading
from lowland.core.vec import Vec
from lowland.executors import modes
from lowland.executors.agreement import modes_kept, twins
from lowland.executors.base import Executor, Work
from lowland.executors.batched import Batched
from lowland.executors.local import Local, Pass
from lowland.executors.together import Batch, answer_together

MOST = 16  # probes in one pass
BYTES = 1 << 28  # of the weights of all probes in one pass
TRIALS = 8  # measured tuples, of which the first warms up and does not count
GAIN = 0.95  # the most of Local's time that Batched may take, because it needs more memory
CHOICES = ("", "local", "batched", "refused")


class Auto(Executor):
    """Answers the probes of one tuple by :class:`Batched` or by :class:`Local`, whichever takes less time.

    It measures the first tuples that :class:`Batched` can answer. :class:`Local` gives their readings;
    :class:`Batched` answers the same probes as a trial, whose readings are thrown away and which leaves no trace in
    the model. So no reading of a measured step depends on the clock. After 8 trials the choice is made for good:
    :class:`Batched` if it takes less than 95 % of the time, by the median. From then on readings equal those of
    :class:`Local` up to rounding. The choice is in the engine's state, so a resumed training goes on alike.

    :class:`Local` is chosen for good, whatever the clock says, if the trial fails, as for a loss function that cannot
    run under ``vmap``; if the readings differ, which trials and later watched steps compare as :class:`Batched` does;
    and if the model draws random numbers, unless the engine has ``rng="shared"``, because the
    dropout masks of :class:`Batched` differ. On several ranks that average gradients, :class:`Local` answers all
    probes, as :class:`Batched` does, so all ranks choose alike.

    Only measured steps wait for a device. Trials cost time, but are not counted in ``engine.cost``. In them
    :func:`lowland.displaced` is true. If a loss function that could run under ``vmap`` ceases to do so after the
    choice, in a step that is not watched, it is refused as by :class:`Batched`.

    Args:
        width: The most probes that a plan may ask for together, >= 1; 1 measures nothing. It is 1 after the choice of
            :class:`Local`, so that a plan keeps no more gradients than it needs.

    Raises:
        ArgumentError: ``width`` is not an integer >= 1.

    Attributes:
        choice: "local", "batched", or "refused", which is :class:`Local` after a failed trial; "" before the choice.
    """

    def __init__(self, width: int = 4) -> None:
        self._batched, self._local = Batched(width), Local()
        self.width, self.choice = width, ""
        self._ratios: list[float] = []  # Batched's time divided by Local's

    @classmethod
    def of(cls, params: Vec) -> Auto:
        """The executor for these parameters, whose copies for all probes of a pass take at most 256 MiB.

        The width is at most 16. Parameters of more than 128 MiB are never copied: their width is 1.
        """
        size = sum(p.numel() * p.element_size() for p in params)
        return cls(max(1, min(MOST, BYTES // max(size, 1))))

    def run(self, work: Work, probes: tuple[Probe, ...]) -> tuple[Reading, ...]:
        """See :meth:`Executor.run`.

        Raises:
            LossError: The loss function returns no valid loss.
            UsageError: The loss function can no longer run for several probes at once.
        """
        if self.choice == "batched":
            return self._chosen(work, probes)
        # Watched steps look at more, so their time says nothing.
        waits = self.choice or work.step.watched or len(probes) > self.width
        if waits or (batch := self._batched.batch(work, probes)) is None:
            return self._local.run(work, probes)
        compared, trial, real = twins(probes, 3, last=True)
        seconds = _try(work, trial, batch) if self._agrees(work, compared, batch) else None
        start = perf_counter()
        readings = self._local.run(work, real)
        _wait(work.device)
        self._note(seconds, perf_counter() - start, shared=work.rng is not None)
        return readings

    def _chosen(self, work: Work, probes: tuple[Probe, ...]) -> tuple[Reading, ...]:
        """The readings of :class:`Batched`; those of :class:`Local` if the two do not agree any longer."""
        batch = self._batched.batch(work, probes)
        if batch is not None and (work.first or work.step.watched):
            compared, probes = twins(probes, 2, last=True)
            if not self._agrees(work, compared, batch):
                self._choose("refused", 1)
                batch = None
        return self._local.run(work, probes) if batch is None else self._batched.answer(work, probes, batch)

    def _agrees(self, work: Work, probes: tuple[Probe, ...], batch: Batch) -> bool:
        """Whether :class:`Batched` gives the readings of :class:`Local`."""
        try:
            self._batched.check(work, probes, batch)
        except Exception:  # what is wrong with the loss, too, is raised by Local, which answers next
            return False
        return True

    def passes(
        self, work: Work, probes: tuple[Probe, ...], on_error: Callable[[], None] | None = None
    ) -> Generator[Pass, None, tuple[Reading, ...]]:
        """See :meth:`Executor.passes`; the passes run one after the other, because the caller runs them."""
        return self._local.passes(work, probes, on_error)

    def state_dict(self) -> dict[str, Any]:
        """The choice, the width, and what has been measured before the choice."""
        return {"choice": self.choice, "width": self.width, "ratios": list(self._ratios)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue with the choice of another training.

        Raises:
            StateError: The state is damaged.
        """
        if not state_dict:
            return
        choice, width, ratios = state_dict.get("choice"), state_dict.get("width", 0), state_dict.get("ratios")
        numbers = isinstance(ratios, list) and all(type(r) is float for r in ratios)
        if choice not in CHOICES or type(width) is not int or width < 1 or not numbers:
            raise StateError(
                f"the state of an executor must have a choice among {CHOICES}, a width >= 1 and a list of ratios, but "
                f"is {dict(state_dict)!r}; load an earlier checkpoint"
            )
        self._choose(choice, width, state_dict["ratios"])

    def _note(self, batched: float | None, local: float, *, shared: bool) -> None:
        """Add a measurement, and choose if there are enough; None is a failed trial."""
        if batched is None:
            self._choose("refused", 1)
            return
        self._ratios.append(batched / local if local > 0 else math.inf)
        if len(self._ratios) >= TRIALS:
            faster = statistics.median(self._ratios[1:]) < GAIN
            # With shared numbers, probes that are asked alone draw others, which must not depend on the clock.
            self._choose("batched" if faster else "local", self.width if faster or shared else 1)

    def _choose(self, choice: str, width: int, ratios: Sequence[float] = ()) -> None:
        self.choice, self.width, self._ratios = choice, width, list(ratios)
        self.substitutes = choice == "batched"


def _try(work: Work, probes: tuple[Probe, ...], batch: Batch) -> float | None:
    """The seconds of one pass for all probes; None if it fails or draws random numbers. Its effects are taken back."""
    step, rng = work.step, modes.SharedRNG(work.device)
    work.step = copy.copy(step)
    try:
        # An error of `passing` is the user's: a tensor was written that it cannot restore.
        with modes_kept(work), work.buffers.passing(probes[0]), modes.traceless(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Batched gives them, if it is chosen
            with modes.branch(work.device, 0):
                rng.begin(work.buffers.generators)
                rng.rewind()
                try:
                    _wait(work.device)
                    start = perf_counter()
                    with work.buffers.untouched():
                        answer_together(work, probes, batch)
                    _wait(work.device)
                    seconds = perf_counter() - start
                    return seconds if work.rng is not None or not rng.moved() else None
                except Exception:  # what is wrong with the loss, too, is raised by Local, which answers next
                    return None
                finally:
                    rng.rewind()
    finally:
        work.step = step


def _wait(device: torch.device) -> None:
    """Wait for the work of a device, so that its time counts."""
    backend: Any = getattr(torch, device.type, None)
    if device.type != "cpu" and hasattr(backend, "synchronize"):
        backend.synchronize(*[device] * (device.type != "mps"))
