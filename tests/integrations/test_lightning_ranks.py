"""Lightning with a method on two processes under torchrun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning", exc_type=(ImportError, RuntimeError))

from integrations.launch import follow
from integrations.pl import Module, fitted
from integrations.two_processes_lightning import CASES
from lowland.core.errors import StateError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
PROGRAM = "two_processes_lightning.py"


@pytest.mark.parametrize("case", [c for c in CASES if "k=" in c or c == "clip"])
def test_two_processes_follow_the_trajectory(found: dict[str, Any], case: str) -> None:
    follow(found[case], 1e-10)


def test_without_a_perturbation_it_is_the_trainer_bit_for_bit(found: dict[str, Any]) -> None:
    assert found["plain"] == [0.0, 0.0]


@pytest.mark.parametrize("kind", ["sam", "sampa", "looksam", "msam"])
def test_a_resume_goes_on_bit_for_bit(found: dict[str, Any], kind: str) -> None:
    assert found[f"resume {kind}"] == [[0.0, True], [0.0, True]]


def test_an_engine_on_a_module_that_nobody_averages_is_refused(found: dict[str, Any]) -> None:
    for said in found["unwrapped"]:
        assert "gradients must be averaged over all 2 ranks" in said


def test_another_number_of_processes(found: dict[str, Any], folder: Path) -> None:
    assert found
    with pytest.raises(StateError, match="on rank 0 of 2, but this is one process"):
        fitted("sampa", Module(), ckpt_path=folder / "resume_sampa" / "step=4.ckpt")
    fit = fitted("looksam", Module(), ckpt_path=folder / "resume_looksam" / "step=4.ckpt")
    assert fit.sharp.engine.step > 4
