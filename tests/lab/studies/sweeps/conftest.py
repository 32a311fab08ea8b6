from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lowland.lab import names
from lowland.methods import METHODS

FILE = Path(__file__).with_name("pulled.py")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with the task file, in which the test runs."""
    shutil.copy(FILE, tmp_path / "pulled.py")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for registry in (names.loaded, METHODS):
        for name in [name for name in registry if ".py:" in name]:
            del registry[name]
