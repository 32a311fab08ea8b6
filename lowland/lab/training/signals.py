"""Ctrl-C and SIGTERM that wait for the step under way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):  # noqa: N818 - no error: somebody asked for it
    """A run was asked to stop, and has saved its state.

    Args:
        signum: The signal that asked.
        folder: The run folder.
    """

    def __init__(self, signum: int, folder: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; {folder} can be resumed")
        self.signum = signum
        self.folder = folder


@contextmanager
def deferred() -> Iterator[Callable[[], int | None]]:
    """Remember SIGINT and SIGTERM instead of dying of them; a second one acts at once.

    Yields:
        A function that tells the number of the signal that came, None while there was none.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # only the main thread receives signals
        return

    def remember(signum: int, frame: FrameType | None) -> None:
        came.append(signum)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, remember)
    try:
        yield lambda: came[0] if came else None
    finally:
        restore()
