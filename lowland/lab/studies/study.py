"""Studies: a study decides which run is next, and can use the records of earlier runs for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from lowland.lab.config import RunConfig
from lowland.lab.training.progress import Update, Watch
from lowland.lab.training.run import train
from lowland.parallel import world
from lowland.runs.file import history
from lowland.runs.reader import read
from lowland.runs.record import RunRecord


class Study(Protocol):
    """Gives the next run by ``ask``, and receives its record by ``tell``.

    On several ranks every rank has its own copy of the study. All copies receive the same records, so a study that
    draws random numbers must draw them from a seed.
    """

    def ask(self) -> RunConfig | None:
        """The next run; None if the study is complete."""

    def tell(self, run: RunConfig, record: RunRecord) -> None:
        """Receive the record of a run that has ended."""


class Grid:
    """A study whose runs are fixed from the start.

    Args:
        runs: The runs, in order.
    """

    def __init__(self, runs: Iterable[RunConfig]) -> None:
        self._runs = iter(runs)

    def ask(self) -> RunConfig | None:
        """See :meth:`Study.ask`."""
        return next(self._runs, None)

    def tell(self, run: RunConfig, record: RunRecord) -> None:
        """Ignore the record."""


class Display(Protocol):
    """Shows the progress of a study."""

    def begin(self, name: str) -> None:
        """Show that the run of this name starts or resumes."""

    def update(self, update: Update) -> None:
        """Show the progress of the current run."""

    def end(self, name: str, line: dict[str, Any], *, kept: bool) -> None:
        """Show the end line of a run; ``kept`` is true if the run had finished before."""


def conduct(
    study: Study,
    out: Path,
    display: Display,
    *,
    name: Callable[[RunConfig], str],
    watch: Watch | None = None,
    command: Sequence[str] = (),
) -> list[tuple[Path, RunRecord]]:
    """Train the runs that a study asks for, until it asks for no more.

    A finished run in ``out`` is kept, and an unfinished run is resumed. So an interrupted study can be repeated if it
    asks for the same runs after the same records.

    Args:
        study: The study.
        out: The folder that gets one folder per run.
        display: Shows the progress.
        name: A function from a run to the name of its folder.
        watch: Called after each epoch of a run; see :func:`~lowland.lab.training.run.train`.
        command: The command line, for the run files.

    Returns:
        The run folders with their records, in order.
    """
    runs = []
    while (config := study.ask()) is not None:
        folder = out / name(config)
        with world(config.given_mesh, config.device) as ranks:  # only the first rank reads the files
            recorded = ranks.broadcast(history(folder).end)
            if recorded is None:
                display.begin(folder.name)
            line = recorded or train(config, folder, resume=True, progress=display.update, watch=watch, command=command)
            display.end(folder.name, line, kept=recorded is not None)
            record = ranks.broadcast(read(folder) if ranks.first else None)
        study.tell(config, record)
        runs.append((folder, record))
    return runs
