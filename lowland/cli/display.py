"""Shows the progress of runs: bars on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.status import Status

from lowland.lab.metric import Metric
from lowland.lab.training.evaluate import headline
from lowland.lab.training.progress import Update

LINE_SECONDS = 15.0  # seconds between progress lines when the output is no terminal


class Lines:
    """Prints a line at the end of each run, and progress lines during long runs.

    Args:
        console: The console to print to.
        total: The number of runs.
        metrics: The metrics of the task; the first is shown.
    """

    def __init__(self, console: Console, total: int, metrics: Sequence[Metric] = ()) -> None:
        self.console, self.metrics = console, metrics
        self.total = total
        self.count = 0
        self._printed = self._begun = time.monotonic()
        self._first: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to clean up."""

    def begin(self, name: str) -> None:
        """Note that a run begins or resumes."""
        self._printed = self._begun = time.monotonic()
        self._first = None

    def update(self, update: Update) -> None:
        """Show the progress of the run."""
        self._note_first(update)
        if time.monotonic() - self._printed >= LINE_SECONDS:
            self._printed = time.monotonic()
            self._say(f"{update.run}: {100 * update.fraction:.0f} %, {state(update, self.left(update))}")

    def end(self, name: str, line: dict[str, Any], *, kept: bool) -> None:
        """Show the result of the run."""
        self.count += 1
        self._say(f"[{self.count}/{self.total}] {name}: {outcome(line, self.metrics, kept=kept)}")

    def advance(self, count: int, text: str) -> None:
        """Show a line of text, and the number of trials that have ended."""
        self.count = count
        self._say(f"[{self.count}/{self.total}] {text}")

    def left(self, update: Update) -> float | None:
        """The estimated seconds until the run's end, from the pace since the first update; None without a pace."""
        done = update.fraction - (update.fraction if self._first is None else self._first)
        if done <= 0:
            return None
        return (time.monotonic() - self._begun) * (1 - update.fraction) / done

    def _note_first(self, update: Update) -> None:
        # The first update comes after the preparations and after the loading of a checkpoint.
        if self._first is None:
            self._first, self._begun = update.fraction, time.monotonic()

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class Bars(Lines):
    """A bar for the runs, a bar for the current one, and a line for every finished run above them."""

    def __init__(self, console: Console, total: int, metrics: Sequence[Metric] = ()) -> None:
        super().__init__(console, total, metrics)
        columns = TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[state]}")
        self._progress = Progress(*columns, console=console, transient=True)
        self._runs: TaskID | None = None
        if total > 1:
            self._runs = self._progress.add_task("runs", total=total, state=f"0/{total}")
        self._run = self._progress.add_task("", total=1.0, state="", visible=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bars; the lines above remain."""
        self._progress.stop()

    def begin(self, name: str) -> None:
        """Note that a run begins or resumes."""
        super().begin(name)
        self._progress.update(self._run, description=name, completed=0.0, state="preparing", visible=True)

    def update(self, update: Update) -> None:
        """Show the progress of the run."""
        self._note_first(update)
        text = state(update, self.left(update))
        self._progress.update(self._run, completed=update.fraction, state=text)

    def end(self, name: str, line: dict[str, Any], *, kept: bool) -> None:
        """Show the result of the run."""
        super().end(name, line, kept=kept)
        self._finished()

    def advance(self, count: int, text: str) -> None:
        """Show a line of text, and the number of trials that have ended."""
        super().advance(count, text)
        self._finished()

    def _finished(self) -> None:
        self._progress.update(self._run, visible=False)
        if self._runs is not None:
            self._progress.update(self._runs, completed=self.count, state=f"{self.count}/{self.total}")


class Results:
    """Prints a line for each result, and on a terminal what is being measured.

    Args:
        console: The console to print to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = console.status("") if console.is_terminal else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Remove what is shown of a measurement under way."""
        if self._status is not None:
            self._status.stop()

    def begin(self, text: str) -> None:
        """Show that a measurement begins."""
        if self._status is not None:
            self._status.update(text)
            self._status.start()

    def end(self, text: str) -> None:
        """Show a result."""
        if self._status is not None:
            self._status.stop()
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def display(console: Console, total: int, metrics: Sequence[Metric] = ()) -> Lines:
    """Bars on a terminal, lines elsewhere."""
    return Bars(console, total, metrics) if console.is_terminal else Lines(console, total, metrics)


def state(update: Update, left: float | None) -> str:
    """The state of a run on one line: epoch, loss, score, speed and remaining time."""
    parts = [f"epoch {update.epoch + 1}", f"loss {update.loss:.3f}"]
    if update.score is not None:
        parts.append(update.score)
    parts.append(f"{update.steps_per_second:.3g} steps/s")
    if left is not None:
        parts.append(f"{duration(left)} left")
    return ", ".join(parts)


def outcome(line: dict[str, Any], metrics: Sequence[Metric], *, kept: bool) -> str:
    """The result of a finished run on one line."""
    seconds = line.get("seconds") or 0.0
    text = "diverged" if line.get("diverged") else f"test {headline(metrics, line.get('test') or {})}"
    epochs = f"{line['epochs']} epoch{'s' * (line['epochs'] != 1)}"
    return f"{text} after {epochs}, {duration(seconds)} of training{' (kept)' if kept else ''}"


def duration(seconds: float) -> str:
    """A duration in seconds, minutes or hours.

    Example:
        >>> duration(3.21), duration(75), duration(7300)
        ('3.2 s', '1:15 min', '2:01 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"
