"""A study decides which run is next, and may decide by how earlier runs ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from lowland.lab.config import RunConfig
from lowland.lab.training.run import Update, train
from lowland.parallel import world
from lowland.runs.file import history
from lowland.runs.reader import read
from lowland.runs.record import RunRecord


class Study(Protocol):
    """Asked for the next run, and told its record.

    On several ranks every rank has its own copy of the study. All copies are told the same records, so a study that
    draws random numbers must draw them from a seed.
    """

    def ask(self) -> RunConfig | None:
        """The next run; None where the study is complete."""

    def tell(self, run: RunConfig, record: RunRecord) -> None:
        """This run is over; its record says how it ended."""


class Grid:
    """The study whose runs are known from the start.

    Args:
        runs: The runs, in their order.
    """

    def __init__(self, runs: Iterable[RunConfig]) -> None:
        self._runs = iter(runs)

    def ask(self) -> RunConfig | None:
        """See :meth:`Study.ask`."""
        return next(self._runs, None)

    def tell(self, run: RunConfig, record: RunRecord) -> None:
        """A grid has nothing to learn."""


class Display(Protocol):
    """What shows a study while it runs."""

    def begin(self, name: str) -> None:
        """The run of that name begins, or goes on."""

    def update(self, update: Update) -> None:
        """The current run has come this far."""

    def end(self, name: str, line: dict[str, Any], *, kept: bool) -> None:
        """The run is over with this last line; ``kept`` says that it had been before."""


def conduct(
    study: Study, out: Path, display: Display, *, name: Callable[[RunConfig], str], command: Sequence[str] = ()
) -> list[tuple[Path, RunRecord]]:
    """Train what a study asks for, until it asks for nothing more.

    A finished run in ``out`` is kept, and an unfinished one resumed. So a study that was interrupted goes on where it
    was, if it asks for the same runs after the same records.

    Args:
        study: The study.
        out: The folder that gets one folder per run.
        display: Shows the progress.
        name: The name of a run's folder.
        command: What was typed, for the record.

    Returns:
        The run folders with their records, in the order in which the study has asked.
    """
    runs = []
    while (config := study.ask()) is not None:
        folder = out / name(config)
        with world(config.mesh, config.device) as ranks:  # the first rank has the files
            before = ranks.broadcast(history(folder).end)
            if before is None:
                display.begin(folder.name)
            line = before or train(config, folder, resume=True, progress=display.update, command=command)
            display.end(folder.name, line, kept=before is not None)
            record = ranks.broadcast(read(folder) if ranks.first else None)
        study.tell(config, record)
        runs.append((folder, record))
    return runs
