"""Locks between the processes of a sweep, which the system releases when a process ends, also by SIGKILL."""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lowland.core.errors import ArgumentError, UsageError

LOCK_FILE = ".sweeps.lock"
_BUSY = (errno.EACCES, errno.EAGAIN)


class Locks:
    """Named locks in a folder, each a byte of one file that no process writes to.

    The locks are those of POSIX: they hold between processes, on NFS also between machines, and are not inherited by
    worker processes. A process must have at most one object for a folder, because closing the file releases all locks.

    Args:
        folder: The folder, which is created if missing.

    Raises:
        ArgumentError: The folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ArgumentError(
                f"out must be a folder that can be written to, but {folder} cannot be ({error.strerror}); "
                "choose another --out"
            ) from None

    def take(self, name: str, *, wait: bool = False) -> bool:
        """Take a lock.

        Args:
            name: The name of the lock.
            wait: Wait until the lock is free.

        Returns:
            Whether this process has the lock now; always true with ``wait``.

        Raises:
            ArgumentError: The file system has no locks.
        """
        fcntl = _fcntl()
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, _place(name))
        except OSError as error:
            if error.errno in _BUSY and not wait:
                return False
            raise ArgumentError(
                f"out must be on a file system with locks, but {self.folder} is not ({error.strerror}); choose "
                "another --out"
            ) from None
        return True

    def release(self, name: str) -> None:
        """Release a lock."""
        fcntl = _fcntl()
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _place(name))

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Hold a lock, after waiting for it."""
        self.take(name, wait=True)
        try:
            yield
        finally:
            self.release(name)

    def token(self) -> str:
        """A text that is the same for all processes that share the folder, and that no other folder has."""
        with self.hold("token"):
            written = os.pread(self._file, 64, 0).decode()
            if not written:
                written = uuid.uuid4().hex
                os.pwrite(self._file, written.encode(), 0)
        return written

    def close(self) -> None:
        """Release all locks."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class FileLock:
    """The lock of Optuna's journal file.

    Optuna's own lock is a file, which outlives a process that is killed while it has it, and then stops all others for
    half a minute.

    Args:
        locks: The locks of the folder of the journal.
    """

    def __init__(self, locks: Locks) -> None:
        self._locks = locks

    def acquire(self) -> bool:
        """Wait for the lock."""
        return self._locks.take("journal", wait=True)

    def release(self) -> None:
        """Release the lock."""
        self._locks.release("journal")


def _place(name: str) -> int:
    """The byte of a lock, far behind the token."""
    return 2**56 + int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")


def _fcntl() -> Any:
    try:
        import fcntl
    except ImportError:
        raise UsageError(
            "a sweep needs the file locks of Linux or macOS, which this system does not have; use lowland compare with "
            "the values written out"
        ) from None
    return fcntl
