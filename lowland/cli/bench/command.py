"""The base classes of the measurements of ``lowland bench``: cases, a progress bar, tables, a JSON file; rounds."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lowland.core.errors import ArgumentError, UnknownNameError


@dataclass(kw_only=True)
class Measurement(ABC):
    """One measurement, a case at a time.

    Args:
        cases: The cases to measure; by default all cases.
        out: The JSON file; by default bench-NAME.json, with the measurement's name.

    Attributes:
        name: The name on the command line.
        known: All cases by name.
    """

    name: ClassVar[str]
    known: ClassVar[Mapping[str, Any]]

    cases: tuple[str, ...] = ()
    out: Path | None = None

    @abstractmethod
    def measure(self, case: str, tick: Callable[[], None]) -> dict[str, Any]:
        """The figures of one case; calls ``tick`` after every part of the measurement."""

    @abstractmethod
    def total(self) -> int:
        """The number of calls of ``tick`` by :meth:`measure` for one case."""

    @abstractmethod
    def tables(self, result: dict[str, Any]) -> Iterable[RenderableType]:
        """The tables and sentences that the terminal shows for one case."""

    @abstractmethod
    def machine(self) -> dict[str, Any]:
        """The machine that the figures are measured on."""

    def figure(self) -> Path | None:
        """The file of the figure; None where there is no figure."""
        return None

    def check(self) -> None:  # noqa: B027 - most measurements need nothing of the machine
        """Refuse options that break their rule, and a machine that lacks something."""

    def run(self, console: Console, argv: Sequence[str]) -> int:
        """Measure, print, write."""
        for case in self.cases:
            if case not in self.known:
                raise UnknownNameError("case", case, self.known)
        self.check()
        files = [path for path in (self.file(), self.figure()) if path is not None]
        for path in files:
            _check_writable(path)  # fail before the minutes of measuring
        results = [self._with_progress(case, console) for case in self.cases or tuple(self.known)]
        for result in results:
            for renderable in self.tables(result):
                console.print(renderable, highlight=False)
        self.write(results)
        for path in files:
            console.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)
        return 0

    def file(self) -> Path:
        """The JSON file."""
        return self.out or Path(f"bench-{self.name}.json")

    def write(self, results: Sequence[dict[str, Any]]) -> None:
        """Write the JSON file."""
        self.file().write_text(json.dumps({"machine": self.machine(), "cases": results}, indent=2) + "\n")

    def _with_progress(self, case: str, console: Console) -> dict[str, Any]:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task(case, total=self.total())
            return self.measure(case, lambda: progress.advance(bar))


@dataclass(kw_only=True)
class Timed(Measurement):
    """A measurement of step times, in rounds.

    Args:
        rounds: Rounds that count, >= 5; every variant takes one step a round.
    """

    rounds: int = 60


def _check_writable(out: Path) -> None:
    existed = out.exists()
    try:
        out.open("a").close()
        if not existed:
            out.unlink()  # leave no empty file if the measurement fails later
    except OSError as error:
        raise ArgumentError(
            f"out must be a file that can be written to, but {out} cannot be ({error.strerror}); choose another --out"
        ) from None
