"""Every test starts from the same global random state, in one thread."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


# Files whose few tests take long begin first, or one worker would be left alone with them in the end.
LONG = ("test_torchrun.py", "test_replicas.py", "test_ranks.py", "test_parallel_examples.py", "test_main.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
