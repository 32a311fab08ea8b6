"""Defers Ctrl-C and SIGTERM until the current step has ended."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):  # noqa: N818 - not an error, because the user stopped the run
    """A signal stopped a run after a checkpoint.

    Args:
        signum: The number of the signal.
        folder: The run folder.
    """

    def __init__(self, signum: int, folder: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; {folder} can be resumed")
        self.signum = signum
        self.folder = folder


@contextmanager
def deferred() -> Iterator[Callable[[], int | None]]:
    """Record SIGINT and SIGTERM instead of ending the process; a second signal has its normal effect.

    Yields:
        A function that returns the number of the recorded signal, or None.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # only the main thread receives signals
        return

    def record(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, record)
    try:
        yield lambda: received[0] if received else None
    finally:
        restore()
