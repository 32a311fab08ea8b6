"""transformers' Trainer with a method on two processes under torchrun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", exc_type=(ImportError, RuntimeError))
pytest.importorskip("accelerate", exc_type=(ImportError, RuntimeError))

from integrations.hf import Tiny, classes, trained
from integrations.launch import follow
from integrations.two_processes_hf import CASES, STEPS
from lowland.core.errors import StateError

pytestmark = pytest.mark.slow
PROGRAM = "two_processes_hf.py"


@pytest.mark.parametrize("case", [c for c in CASES if "k=" in c or c == "clip"])
def test_two_processes_follow_the_trajectory(found: dict[str, Any], case: str) -> None:
    bound = 1e-7 if "texts" in case else 1e-10  # a causal model's loss is computed in float32
    follow(found[case], bound)


def test_without_a_perturbation_it_is_the_trainer_bit_for_bit(found: dict[str, Any]) -> None:
    assert found["plain"] == [0.0, 0.0]


@pytest.mark.parametrize("kind", ["sam", "sampa", "looksam", "msam"])
def test_a_resume_goes_on_bit_for_bit(found: dict[str, Any], kind: str) -> None:
    assert found[f"resume {kind}"] == [[0.0, True], [0.0, True]]


def test_a_pass_is_reduced_once_whatever_the_accumulation(found: dict[str, Any]) -> None:
    assert found["reductions"] == [2.0, 2.0]


def test_another_number_of_processes(found: dict[str, Any], folder: Path) -> None:
    """SAMPa's held batch is a rank's own; LookSAM's direction is the same on all ranks."""
    assert found
    with pytest.raises(StateError, match="must be loaded where it was taken, on rank 0 of 2, but this is one process"):
        trained("sampa", folder, Tiny(), classes(), resume=str(folder / "resume_sampa/checkpoint-3"), **STEPS)
    trainer = trained("looksam", folder, Tiny(), classes(), resume=str(folder / "resume_looksam/checkpoint-3"), **STEPS)
    assert trainer.engine.step == 6
