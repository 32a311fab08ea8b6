"""The contents of a user's file and their hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lowland.core.errors import ArgumentError, DataError
from lowland.lab.data.contents import verified


def test_contents_and_their_hash(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"text")
    digest = hashlib.sha256(b"text").hexdigest()[:16]
    assert verified("file", path, None) == verified("file", path, digest) == b"text"
    path.write_bytes(b"other")
    with pytest.raises(DataError, match=f"a must have the hash {digest}, but has .*: the file has changed"):
        verified("file", path, digest)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ArgumentError, match=r"file must be a file that can be read, but .* cannot be \("):
            verified("file", path, None)
