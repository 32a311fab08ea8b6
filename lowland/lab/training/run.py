"""One run: train a model with a method until its budget is spent, and be able to go on after any kill."""

from __future__ import annotations

import math
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowland.lab.config import RunConfig
from lowland.lab.data.loader import Loader
from lowland.lab.identity import IDENTITY, now, refuse_other
from lowland.lab.training import checkpoint
from lowland.lab.training.clock import Clock, typical
from lowland.lab.training.events import Events
from lowland.lab.training.judge import Judge
from lowland.lab.training.losses import Losses
from lowland.lab.training.prepare import check_select, complete, line_of, loader_of
from lowland.lab.training.pulse import Pulse
from lowland.lab.training.resumption import changed_versions, check_held, restarted
from lowland.lab.training.signals import Stopped, deferred
from lowland.lab.training.trainer import Trainer, rehearse, settings
from lowland.parallel import World, world
from lowland.runs.file import History, NoFile, RunFile, history

SAVE_SECONDS = 30.0  # at least, between checkpoints, where the configuration names no steps
SAVE_SHARE = 0.02  # of the time, at most, for writing them: a large model is saved less often
TELL_SECONDS = 0.1  # between two calls of the display


class LabWarning(UserWarning):
    """Something that a run survived, and that its owner should know."""


@dataclass(frozen=True)
class Update:
    """How far a run has come, for a display: budget spent, and what is known of the model."""

    run: str
    fraction: float
    step: int
    epoch: int
    loss: float
    score: str | None  # the headline metric on the test part, such as "accuracy 93.12 %"
    steps_per_second: float


Progress = Callable[[Update], None]


def train(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """Train one run to its end.

    Args:
        config: The run.
        folder: Its folder, which gets ``run.jsonl``, ``checkpoints/`` and, on request, ``events/``.
        resume: Go on with what the folder holds. A finished run is left alone; an empty folder starts one.
        progress: Told about ten times a second how far it is.
        command: What was typed to start it, for the record.

    Returns:
        The ``end`` line of the run file.

    Raises:
        StateError: The folder holds a run and ``resume`` is not set, or it holds another run.
        Stopped: SIGINT or SIGTERM came; a checkpoint has been written.
    """
    with world(config.mesh, config.device) as ranks, settings(config):
        held = History(*ranks.broadcast(history(folder)))
        loader = loader_of(config, ranks.share)
        check_select(config, loader)
        method = complete(config, loader)
        line = line_of(config, loader, method, command=command, world=ranks)
        ranks.agree({name: line[name] for name in (*IDENTITY, "steps_per_epoch")})
        line = ranks.broadcast(line)
        if held.config is not None:
            check_held(held.config, line, folder, resume=resume or restarted(held, line))
            if held.end is not None:
                return held.end
        with closing(_Run(config, folder, line, loader, lambda: Trainer(config, method, ranks), ranks)) as run:
            run.begin(held)
            run.go(progress if ranks.first else None)
            return run.finish()


class _Run:
    """A run under way: where it is, and what it has seen of the current epoch."""

    trainer: Trainer
    file: RunFile

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        line: dict[str, Any],
        loader: Loader,
        make: Callable[[], Trainer],
        ranks: World,
    ) -> None:
        self.ranks, self.pulse = ranks, Pulse(ranks)
        self.config, self.folder, self.line, self.loader, self.make = config, folder, line, loader, make
        self.clock = Clock(config.on())
        self.epoch = self.batch = self.peak = 0
        self.losses = Losses(ranks, config.on())
        self.gradients: list[float] = []  # cumulative, after every step
        self.judge = Judge(config, loader)
        # Training time that all ranks go by, and seconds that the last checkpoint took.
        self.seconds = self._writing = 0.0
        self.events: Events | None = None
        self._told = self._saved = time.monotonic()

    # Start and end

    def begin(self, held: History) -> None:
        """Open the run file, and go back to the last checkpoint or measure the memory of a fresh run."""
        self.trainer = self.make()  # an unknown model is refused before there is a folder
        damaged: list[str] = []
        latest = checkpoint.latest(self.folder, damaged.append) if self.ranks.first else None
        path = self.ranks.broadcast(latest)
        saved = None if path is None else checkpoint.load(path, self.trainer.snapshot.like, self.ranks)
        if saved is not None:
            # The run file may be gone or another one: what a checkpoint belongs to, it says itself.
            refuse_other(saved[0]["config"], self.line, self.folder)
        self.file = RunFile(self.folder, fresh=saved is None) if self.ranks.first else NoFile()
        if saved is None:
            self.file.write("config", **self.line, parameters=sum(p.numel() for p in self.trainer.engine.params))
            self.peak = rehearse(self.make, self.loader)
        else:
            self._restore(*saved)
            self.file.write("resumed", step=self.trainer.engine.step, time=now(), job=self.line["job"])
            damaged += changed_versions(held, self.line) if self.ranks.first else []
        for message in damaged:
            self.file.write("warning", message=message)
            warnings.warn(message, LabWarning, stacklevel=2)
        if self.config.tensorboard and self.ranks.first:
            self.events = Events(self.folder, self.trainer.engine.step)

    def finish(self) -> dict[str, Any]:
        """Judge the final weights and write the last line."""
        engine, clock = self.trainer.engine, self.clock
        return self.file.write(
            "end",
            epochs=self.epoch,
            step=engine.step,
            **self.judge.score,
            **({"best": self.judge.best} if self.judge.best else {}),
            diverged=self.losses.diverged,
            seconds=clock.seconds,
            seconds_per_step=typical(clock.laps, [b - a for a, b in pairwise([0.0, *self.gradients])]),
            gradients_per_step=engine.cost.gradients / engine.step,
            sequential_per_step=engine.cost.sequential / engine.step,
            weights_per_step=engine.cost.weights / engine.step,
            forwards_per_step=(engine.cost.forwards - engine.cost.gradients) / engine.step,
            peak_memory=self.peak,
            **self.judge.verdict(self.trainer),
        )

    def close(self) -> None:
        """Close the files."""
        self.pulse.close()
        if hasattr(self, "file"):
            self.file.close()
        if self.events is not None:
            self.events.close()

    # Training

    def fraction(self) -> float:
        """How much of the budget is spent, in [0, 1]."""
        engine = self.trainer.engine
        return self.config.budget.progress(steps=engine.step, gradients=engine.cost.gradients, seconds=self.seconds)

    def go(self, progress: Progress | None) -> None:
        """Train until the budget is spent, the loss is no number any more, or a signal comes."""
        with deferred() as signaled:
            while (self.fraction() < 1 or self.batch) and not self._ended_early():
                self._rest_of_epoch(progress, signaled)
                self._end_epoch()
                self._listen(signaled())
        self._save()

    def _ended_early(self) -> bool:
        """Whether the loss is no number any more, or the best epoch is too long ago."""
        return self.losses.lost or self.judge.patient_no_more(self.epoch)

    def _rest_of_epoch(self, progress: Progress | None, signaled: Callable[[], int | None]) -> None:
        self.clock.start()
        for batch in self.loader.batches(self.epoch, start=self.batch):
            fraction = self.fraction()
            if fraction >= 1:
                return
            loss = self.trainer.step(batch, fraction)
            self.clock.lap()
            self.batch += 1
            self.losses.add(loss, self.loader.here, step=self.trainer.engine.step)
            self.gradients.append(self.trainer.engine.cost.gradients)
            self._listen(signaled(), due=self._due())
            if self.trainer.engine.step % (self.config.checkpoint_every or math.inf) == 0:
                self._save()
            self._tell(progress, loss)
            self.clock.start()

    def _end_epoch(self) -> None:
        engine = self.trainer.engine
        self.epoch += 1
        self.judge.judge(self.trainer, self.epoch)
        line = self.file.write(
            "epoch",
            epoch=self.epoch,
            step=engine.step,
            train_loss=self.losses.end_epoch(),
            **self.judge.score,
            lr=self.trainer.optimizer.param_groups[0]["lr"],
            seconds=self.clock.seconds,
            gradients=engine.cost.gradients,
            sequential=engine.cost.sequential,
            peak_memory=self.peak,
        )
        if self.events is not None:
            self.events.write(line)
        self.batch = 0

    def _tell(self, progress: Progress | None, loss: Tensor) -> None:
        if progress is None or time.monotonic() - self._told < TELL_SECONDS:
            return
        self._told = time.monotonic()
        step = self.trainer.engine.step
        speed = step / self.clock.seconds
        progress(Update(self.line["run"], self.fraction(), step, self.epoch, float(loss), self.judge.headline(), speed))

    # Checkpoints

    def _due(self) -> bool:
        """Whether the clock says so; a number of steps is known to all ranks."""
        since = time.monotonic() - self._saved
        return self.config.checkpoint_every is None and since > max(SAVE_SECONDS, self._writing / SAVE_SHARE)

    def _listen(self, signum: int | None, *, due: bool = False) -> None:
        """Save or stop at the same step on all ranks: any of them has a signal, or the first has a checkpoint due."""
        first = self.ranks.first
        flags = [signum == signal.SIGINT, signum == signal.SIGTERM, due and first, self.clock.seconds * first]
        interrupted, terminated, due_there, seconds = self.pulse.beat([float(t) for t in flags])
        self.seconds = max(self.seconds, seconds)  # the first beat brings nothing, also after a return to a checkpoint
        if interrupted or terminated or due_there:
            self._save()
        if interrupted or terminated:
            raise Stopped(signal.SIGTERM if terminated else signal.SIGINT, self.folder)

    def _save(self) -> None:
        begun = time.monotonic()
        state = {
            "config": self.line,
            "trainer": self.trainer.state(),
            "place": {"epoch": self.epoch, "batch": self.batch, "peak": self.peak},
            "score": self.judge.score,
            "best": self.judge.best,
            "losses": self.losses.state(),
            "seconds": self.clock.seconds,
            "laps": torch.tensor(self.clock.laps, dtype=torch.float64),
            "gradients": torch.tensor(self.gradients, dtype=torch.float64),
        }
        tensors, step = self.trainer.tensors(), self.trainer.engine.step
        checkpoint.save(self.folder, state, tensors, step=step, keep=self.config.keep, world=self.ranks)
        self._writing, self._saved = time.monotonic() - begun, time.monotonic()

    def _restore(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.trainer.load(state["trainer"], tensors)
        for name, value in state["place"].items():
            setattr(self, name, value)
        self.judge.score, self.judge.best = state["score"], state["best"]
        # Checkpoints of 0.1.0 have the sums alone.
        self.losses.load(**(state["losses"] if "losses" in state else {"seen": state["seen"]}))
        self.seconds = self.clock.seconds = state["seconds"]
        self.clock.laps = state["laps"].tolist()
        self.gradients = state["gradients"].tolist()
