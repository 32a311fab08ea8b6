from __future__ import annotations

import pytest

from lowland.planner.typical import typical


def test_every_group_of_steps_counts_with_its_median() -> None:
    # three cheap steps of 1 s with an outlier of 9 s, and two dear ones of 2 s and 4 s: (4 · 1 + 2 · 3) / 6
    assert typical([1.0, 1.0, 9.0, 1.0, 2.0, 4.0], [1, 1, 1, 1, 2, 2]) == pytest.approx(10 / 6)
    assert typical([], []) is None
    with pytest.raises(ValueError, match="shorter"):
        typical([1.0, 2.0], [1])
