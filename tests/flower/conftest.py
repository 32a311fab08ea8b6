"""Tests with Flower, which has an environment of its own: `make test-flower`. Without Flower nothing is collected."""

from __future__ import annotations

import importlib.util
import warnings

import pytest

if importlib.util.find_spec("flwr") is None:
    collect_ignore_glob = ["*.py"]
else:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # typer, which Flower's logger imports, uses what click deprecates
        import flwr.app
        import flwr.serverapp  # noqa: F401


@pytest.fixture(autouse=True)
def _identity() -> None:
    """Messages need the identity that a SuperLink gives; tests without a Grid have none."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 0
