from __future__ import annotations

import pytest

from lowland.core.errors import ArgumentError
from lowland.lab.budget import Budget


@pytest.mark.parametrize(("kind", "progress"), [("steps", 0.1), ("gradients", 0.2), ("seconds", 0.35)])
def test_progress_looks_at_its_own_resource(kind, progress):
    assert Budget(kind=kind, limit=100).progress(steps=10, gradients=20, seconds=35) == progress


def test_progress_ends_at_one():
    assert Budget(limit=10).progress(steps=12, gradients=0, seconds=0) == 1


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
def test_limits_that_are_none(limit):
    with pytest.raises(ArgumentError, match=f"limit must be a number > 0, but is {limit}"):
        Budget(limit=limit)


def test_unknown_kind():
    with pytest.raises(ArgumentError, match="budget must be one of 'steps', 'gradients', 'seconds', but is 'hours'"):
        Budget(kind="hours", limit=1)
