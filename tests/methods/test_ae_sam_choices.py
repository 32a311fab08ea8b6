"""AE-SAM chooses the steps whose gradient is long: measured by ``benchmarks/ae_sam_z.py``, which this runs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ae_sam_z.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("ae_sam_z", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # a dataclass looks for its module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [16, 64, 128])
def test_on_digits_it_chooses_long_gradients(script: Any, batch_size: int) -> None:
    # Seeds 0 to 4 give 0.34 to 0.66. The normal distribution would give 0.68 at c from 1 to -1; the squared norms at
    # small batches are skewed, which lowers it.
    z, share = script.measure(batch_size)
    assert z > 0.3
    assert 0.3 < share < 0.6


@pytest.mark.slow
def test_with_a_lag_it_chooses_by_chance(script: Any) -> None:
    z, share = script.measure(64, lag=1)
    assert abs(z) < 0.1
    assert 0.3 < share < 0.6


def test_deviations_by_hand(script: Any) -> None:
    # delta = 0.5: mean 1, 2.5, 1.75; var 0, 1.125, 0.84375
    assert script.deviations([1.0, 4.0, 1.0], 0.5) == pytest.approx([0.0, 2**0.5, -((2 / 3) ** 0.5)], rel=1e-12)
