"""What two processes under torchrun gave, once for each test file that names their program in ``PROGRAM``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integrations.launch import two_processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the two processes write to."""
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, folder: Path) -> dict[str, Any]:
    """By case: what each rank gave."""
    return two_processes(request.module.PROGRAM, folder)
