"""Accelerate with a method on two processes under torchrun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate", exc_type=(ImportError, RuntimeError))

from integrations.launch import follow
from integrations.loops import Loop, net
from integrations.two_processes_accelerate import CASES
from lowland.core.errors import StateError

pytestmark = pytest.mark.slow
PROGRAM = "two_processes_accelerate.py"


@pytest.mark.parametrize("case", [c for c in CASES if "k=" in c or c == "clip"])
def test_two_processes_follow_the_trajectory(found: dict[str, Any], case: str) -> None:
    follow(found[case], 1e-10)


@pytest.mark.parametrize("kind", ["sam", "sampa", "looksam", "msam"])
def test_a_resume_goes_on_bit_for_bit(found: dict[str, Any], folder: Path, kind: str) -> None:
    assert found[f"resume {kind}"] == [[0.0, True], [0.0, True]]
    files = sorted(p.name for p in (folder / f"resume_{kind}").glob("lowland*"))
    assert files == ["lowland_0.pt", "lowland_1.pt"]


def test_a_pass_is_reduced_once_whatever_the_accumulation(found: dict[str, Any]) -> None:
    assert found["reductions"] == [2.0, 2.0]


def test_a_model_that_nobody_averages_is_refused(found: dict[str, Any]) -> None:
    for door, engine in found["unprepared"]:
        assert "model must be what accelerator.prepare returned" in door
        assert "gradients must be averaged over all 2 ranks" in engine


def test_another_number_of_processes(found: dict[str, Any], folder: Path) -> None:
    assert found
    with pytest.raises(StateError, match="on rank 0 of 2, but this is one process"):
        Loop("sampa", net()).load(folder / "resume_sampa")
    assert Loop("looksam", net()).load(folder / "resume_looksam").sharp.engine.step == 3
