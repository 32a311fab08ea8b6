"""Every test starts from the same global random state, in one thread."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
import torch
from branches import branches


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with branches():
        yield


@pytest.fixture(scope="module", autouse=True)
def _collected() -> None:
    """Set aside the objects that no test of the file makes: thousands of tests, and the modules that are loaded.

    Every collection would visit them, and so would lowland's search for parameters outside an engine.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["memory", "messages"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How ranks exchange gradients: through shared memory, or by messages."""
    if request.param == "memory" and not hasattr(os, "memfd_create"):
        pytest.skip("memory is shared on Linux")
    monkeypatch.setenv("LOWLAND_SHARED_MEMORY", "1" if request.param == "memory" else "0")
    return str(request.param)


@pytest.fixture
def by_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks exchange gradients by messages."""
    monkeypatch.setenv("LOWLAND_SHARED_MEMORY", "0")


CASES = 2  # of every parametrized test, which `make check` runs


@pytest.hookimpl(tryfirst=True)  # before -m leaves slow tests out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What starts whole runs takes longest, so it begins first; tests on several ranks come last, as two such files at
    # once want more cores than there are.
    def place(item: pytest.Item) -> int:
        if item.path.name == "test_torchrun.py":
            return 0
        return 2 if hasattr(getattr(item, "module", None), "on_ranks") else 1

    items.sort(key=place)
    for cases in by_test(items):
        chosen = {(2 * i + 1) * len(cases) // (2 * CASES) for i in range(CASES)}  # spread over the parameters
        for number, item in enumerate(cases):
            if len(cases) > CASES and number not in chosen:
                item.add_marker("slow")


def by_test(items: list[pytest.Item]) -> list[list[pytest.Item]]:
    """The cases of each test, in their order."""
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    return list(tests.values())
