"""Hashes of the user's files that a task reads, so that they belong to the identity of a run."""

from __future__ import annotations

from pathlib import Path

from lowland.core.errors import ArgumentError, DataError
from lowland.core.outside import hashed


def verified(field: str, path: Path, expected: str | None) -> bytes:
    """The contents of a file.

    Args:
        field: The field of the task that names the file, for error messages.
        path: The file.
        expected: The hash that the contents must have, as :func:`lowland.core.outside.hashed` gives it; None for any.

    Raises:
        ArgumentError: There is no such file, or it cannot be read.
        DataError: The contents have another hash.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArgumentError(
            f"{field} must be a file that can be read, but {path} cannot be ({error.strerror}); correct the path"
        ) from None
    if expected is not None and hashed(data) != expected:
        raise DataError(
            f"{path} must have the hash {expected}, but has {hashed(data)}: the file has changed since this task was "
            f"named; leave out the field with the hash, and name the task by {field} alone"
        )
    return data
