"""The branches of a GPU, taken on a CPU by all tests where the environment says ``LOWLAND_BRANCHES=gpu``."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import pytest

from lowland.core.at_hand import elsewhere

FORCED = os.environ.get("LOWLAND_BRANCHES") == "gpu"

of_a_cpu = pytest.mark.skipif(FORCED, reason="looks at what only the branches of a CPU do")


def branches() -> AbstractContextManager[None]:
    """The context of a test, or of a rank."""
    return elsewhere() if FORCED else nullcontext()
