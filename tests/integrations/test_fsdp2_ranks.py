"""FSDP version 2, as Accelerate and the Trainer prepare it, with a method on two processes under torchrun."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers", exc_type=(ImportError, RuntimeError))
pytest.importorskip("accelerate", exc_type=(ImportError, RuntimeError))

from integrations.two_processes_fsdp2 import CASES

pytestmark = pytest.mark.slow
PROGRAM = "two_processes_fsdp2.py"


@pytest.mark.parametrize("case", [c for c in CASES if "resume" not in c])
def test_shards_follow_the_trajectory(found: dict[str, Any], case: str) -> None:
    """mSAM's parts are those of all ranks together, because no rank has a gradient of its own."""
    bound = 1e-7 if "texts" in case else 1e-10  # a causal model's loss is computed in float32
    for rank in found[case]:
        assert isinstance(rank, list), rank
        distance, sharded = rank
        assert distance < bound
        assert sharded


@pytest.mark.parametrize("case", [c for c in CASES if "resume" in c])
def test_a_resume_goes_on_bit_for_bit(found: dict[str, Any], case: str) -> None:
    assert found[case] == [[0.0, True], [0.0, True]]
