"""Lightning's Fabric, whose loop is the user's: the recipe of docs/integrations.md, on one process and on two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning", exc_type=(ImportError, RuntimeError))

from integrations.launch import two_processes
from integrations.loops import net
from integrations.pl import by_hand
from integrations.trajectories import apart
from integrations.two_processes_fabric import KINDS, train


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_follows_the_trajectory(kind: str) -> None:
    model, twin = net(), net()
    train(kind, model, clip=0.05)
    by_hand(kind, twin, clip=0.05)
    assert apart(model, twin) < 1e-10


@pytest.mark.slow
def test_two_processes_follow_the_trajectory(tmp_path: Path) -> None:
    found: dict[str, Any] = two_processes("two_processes_fabric.py", tmp_path)
    assert set(found) == {*KINDS, "no_backward_sync"}
    for kind in KINDS:
        for rank in found[kind]:
            assert isinstance(rank, list), rank
            assert rank[0] < 1e-10
            assert rank[1], "ranks are equal bit for bit"
    assert all("must not run inside no_sync()" in said for said in found["no_backward_sync"])
