"""Trains one run until its budget is used up, with checkpoints from which it resumes after a kill."""

from __future__ import annotations

import math
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowland.lab.config import RunConfig
from lowland.lab.contract import check_metrics
from lowland.lab.data.loader import Loader
from lowland.lab.identity import IDENTITY, now, refuse_other
from lowland.lab.training import checkpoint
from lowland.lab.training.clock import Clock
from lowland.lab.training.events import Events
from lowland.lab.training.judge import Judge
from lowland.lab.training.losses import Losses
from lowland.lab.training.placed import placed
from lowland.lab.training.prepare import check_select, complete, line_of, loader_of
from lowland.lab.training.progress import LabWarning, Progress, Update, Watch
from lowland.lab.training.pulse import Pulse
from lowland.lab.training.rehearsal import rehearse, untrained
from lowland.lab.training.resumption import changed_versions, check_folder, restarted
from lowland.lab.training.signals import Stopped, deferred
from lowland.lab.training.trainer import Trainer, settings
from lowland.parallel import World, world
from lowland.planner.memory import reserved
from lowland.planner.typical import typical
from lowland.runs.file import History, NoFile, RunFile, history

SAVE_SECONDS = 30.0  # the shortest time between checkpoints without ``checkpoint_every``
SAVE_FRACTION = 0.02  # the largest fraction of the time for writing checkpoints; a large model is saved less often
PROGRESS_SECONDS = 0.1  # the shortest time between two calls of ``progress``


def train(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    watch: Watch | None = None,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """Train one run to its end, or until ``watch`` prunes it.

    Args:
        config: The run.
        folder: The run folder, which gets ``run.jsonl``, ``checkpoints/`` and, with ``tensorboard``, ``events/``.
        resume: Resume the run in the folder. A finished run is not changed; without a run, a new one starts.
        progress: Called about ten times a second with the progress.
        watch: Called on the first rank after each epoch with its line; a result of True ends the run as pruned.
        command: The command line, for the run file.

    Returns:
        The ``end`` line of the run file; the ``pruned`` line of a run that was pruned, which can be resumed.

    Raises:
        StateError: The folder has this run and ``resume`` is false, or it has another run.
        Stopped: SIGINT or SIGTERM was received; a checkpoint has been written.
    """
    config, plan = placed(config, folder)
    with world(config.mesh, config.device) as ranks, settings(config):
        recorded = History(*ranks.broadcast(history(folder)))
        loader = loader_of(config, ranks.batch_part)
        check_select(config, loader)
        check_metrics(config.task)
        method = complete(config, loader)
        line = line_of(config, loader, method, command=command, world=ranks)
        ranks.agree({name: line[name] for name in (*IDENTITY, "steps_per_epoch")})
        line = ranks.broadcast(line)
        if recorded.config is not None:
            check_folder(recorded.config, line, folder, resume=resume or restarted(recorded, line))
            if recorded.end is not None:
                return recorded.end
        with closing(_Run(config, folder, line, loader, lambda: Trainer(config, method, ranks), ranks)) as run:
            run.begin(recorded)
            if plan is not None:
                run.file.write("planned", **plan)
            pruned = run.train(progress if ranks.first else None, watch)
            return pruned or run.finish()


class _Run:
    """A run in progress: its position in training, its losses and its files."""

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
        self.seconds = 0.0  # the training time of rank 0, which decides on all ranks
        self.events: Events | None = None
        self._write_seconds = 0.0  # the time that the last checkpoint took
        self._reported = self._saved = time.monotonic()  # the times of the last progress call and the last checkpoint

    # Start and end

    def begin(self, recorded: History) -> None:
        """Open the run file; then load the last checkpoint, or measure the memory of a new run."""
        self.trainer = self.make()  # refuses an unknown model before the folder is made
        damaged: list[str] = []
        latest = checkpoint.latest(self.folder, damaged.append) if self.ranks.first else None
        path = self.ranks.broadcast(latest)
        saved = None if path is None else checkpoint.load(path, self.trainer.snapshot.like, self.ranks)
        if saved is not None:
            # The run file may be missing or replaced, so the checkpoint has its own copy of the config line.
            refuse_other(saved[0]["config"], self.line, self.folder)
        self.file = RunFile(self.folder, fresh=saved is None) if self.ranks.first else NoFile()
        if saved is None:
            self.file.write("config", **self.line, parameters=sum(p.numel() for p in self.trainer.engine.params))
            self.peak = rehearse(self.make, self.loader)
            self.losses.untrained = untrained(self.make, self.loader)
        else:
            self._restore(*saved)
            self.file.write("resumed", step=self.trainer.engine.step, time=now(), job=self.line["job"])
            damaged += changed_versions(recorded, self.line) if self.ranks.first else []
        for message in damaged:
            self.file.write("warning", message=message)
            warnings.warn(message, LabWarning, stacklevel=2)
        if self.config.tensorboard and self.ranks.first:
            self.events = Events(self.folder, self.trainer.engine.step)

    def finish(self) -> dict[str, Any]:
        """Evaluate the final weights and write the end line."""
        engine, clock = self.trainer.engine, self.clock
        return self.file.write(
            "end",
            epochs=self.epoch,
            step=engine.step,
            **self.judge.score,
            **({"best": self.judge.best} if self.judge.best else {}),
            diverged=self.losses.diverged,
            seconds=clock.settle(),
            seconds_per_step=typical(clock.laps, [b - a for a, b in pairwise([0.0, *self.gradients])]),
            gradients_per_step=engine.cost.gradients / engine.step,
            sequential_per_step=engine.cost.sequential / engine.step,
            weights_per_step=engine.cost.weights / engine.step,
            forwards_per_step=(engine.cost.forwards - engine.cost.gradients) / engine.step,
            peak_memory=self.peak,
            **reserved(self.config.on()),
            **self.trainer.chosen(),
            **self.judge.final(self.trainer),
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
        """The used fraction of the budget, in [0, 1]."""
        engine = self.trainer.engine
        return self.config.budget.progress(steps=engine.step, gradients=engine.cost.gradients, seconds=self.seconds)

    def train(self, progress: Progress | None, watch: Watch | None = None) -> dict[str, Any] | None:
        """Train until the budget is used up, the loss is not finite, the patience is used up, or a signal stops it.

        Returns:
            The ``pruned`` line if ``watch`` has ended the run before; otherwise None.
        """
        pruned = False
        with deferred() as signaled:
            while not pruned and (self.fraction() < 1 or self.batch) and not self._ends_early():
                self._rest_of_epoch(progress, signaled)
                line = self._end_epoch()
                pruned = watch is not None and self.ranks.broadcast(self.ranks.first and watch(line))
                self._agree(signaled())
        self._save()
        pruned = pruned and self.fraction() < 1 and not self._ends_early()  # otherwise the run is at its end
        return self.file.write("pruned", epoch=self.epoch, step=self.trainer.engine.step) if pruned else None

    def _ends_early(self) -> bool:
        """Whether the loss is not finite, or the patience is used up."""
        return self.losses.not_finite or self.judge.should_stop(self.epoch)

    def _rest_of_epoch(self, progress: Progress | None, signaled: Callable[[], int | None]) -> None:
        self.clock.start()
        for batch in self.loader.batches(self.epoch, start=self.batch):
            fraction = self.fraction()
            if fraction >= 1:
                return
            loss = self.trainer.step(batch, fraction)
            self.clock.lap()
            self.batch += 1
            self.losses.add(loss, self.loader.local_batch_size)
            self.gradients.append(self.trainer.engine.cost.gradients)
            self._agree(signaled(), due=self._due())
            if self.trainer.engine.step % (self.config.checkpoint_every or math.inf) == 0:
                self._save()
            self._report(progress, loss)
            self.clock.start()

    def _end_epoch(self) -> dict[str, Any]:
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
            seconds=self.clock.settle(),
            gradients=engine.cost.gradients,
            sequential=engine.cost.sequential,
            peak_memory=self.peak,
        )
        if self.events is not None:
            self.events.write(line)
        self.batch = 0
        return line

    def _report(self, progress: Progress | None, loss: Tensor) -> None:
        if progress is None or time.monotonic() - self._reported < PROGRESS_SECONDS:
            return
        self._reported = time.monotonic()
        step = self.trainer.engine.step
        speed = step / self.clock.settle()
        progress(Update(self.line["run"], self.fraction(), step, self.epoch, float(loss), self.judge.headline(), speed))

    # Checkpoints

    def _due(self) -> bool:
        """Whether a checkpoint is due by this rank's clock; false with ``checkpoint_every``, which needs no clock."""
        since = time.monotonic() - self._saved
        return self.config.checkpoint_every is None and since > max(SAVE_SECONDS, self._write_seconds / SAVE_FRACTION)

    def _agree(self, signum: int | None, *, due: bool = False) -> None:
        """Save or stop on all ranks at the same step, if any rank has a signal, or if rank 0 has a checkpoint due.

        Raises:
            Stopped: A rank received a signal; a checkpoint has been written.
        """
        first = self.ranks.first
        flags = [signum == signal.SIGINT, signum == signal.SIGTERM, due and first, self.clock.seconds * first]
        interrupted, terminated, save_due, seconds = self.pulse.beat([float(t) for t in flags])
        self.seconds = max(self.seconds, seconds)  # the first sums are zeros, also in a run that resumes
        if interrupted or terminated or save_due:
            self._save()
        if interrupted or terminated:
            raise Stopped(signal.SIGTERM if terminated else signal.SIGINT, self.folder)

    def _save(self) -> None:
        start = time.monotonic()
        state = {
            "config": self.line,
            "trainer": self.trainer.state(),
            "place": {"epoch": self.epoch, "batch": self.batch, "peak": self.peak},
            "score": self.judge.score,
            "best": self.judge.best,
            "losses": self.losses.state(),
            "seconds": self.clock.settle(),
            "laps": torch.tensor(self.clock.laps, dtype=torch.float64),
            "gradients": torch.tensor(self.gradients, dtype=torch.float64),
        }
        tensors, step = self.trainer.tensors(), self.trainer.engine.step
        checkpoint.save(self.folder, state, tensors, step=step, keep=self.config.keep, world=self.ranks)
        self._write_seconds, self._saved = time.monotonic() - start, time.monotonic()

    def _restore(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.trainer.load(state["trainer"], tensors)
        for name, value in state["place"].items():
            setattr(self, name, value)
        self.judge.score, self.judge.best = state["score"], state["best"]
        # Checkpoints of 0.1.0 have only the sums.
        self.losses.load(**(state["losses"] if "losses" in state else {"seen": state["seen"]}))
        self.seconds = self.clock.seconds = state["seconds"]
        self.clock.laps = state["laps"].tolist()
        self.gradients = state["gradients"].tolist()
