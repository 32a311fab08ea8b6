"""Matthews' correlation and F1 by hand, against scikit-learn, and over batches of any size."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sklearn.metrics import f1_score, matthews_corrcoef
from waiting import NoWaiting

from lowland.lab.tasks.binary import F1, MATTHEWS, confusion


def pair(predicted: list[int], true: list[int]) -> tuple[torch.Tensor, Any]:
    """Logits and a batch."""
    return torch.nn.functional.one_hot(torch.tensor(predicted), 2).float(), (None, torch.tensor(true))


def test_counts() -> None:
    counts = confusion(*pair([1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0]))
    assert counts.tolist() == [2, 1, 1, 3]


def test_by_hand() -> None:
    pairs = [pair([1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0])]
    assert MATTHEWS.over(pairs) == pytest.approx((2 * 3 - 1 * 1) / math.sqrt(3 * 3 * 4 * 4))
    assert F1.over(pairs) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))


@pytest.mark.parametrize("seed", range(4))
def test_over_batches_as_scikit_learn_has_them(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    true = torch.randint(2, (101,), generator=draw)
    predicted = torch.where(torch.rand(101, generator=draw) < 0.3, 1 - true, true)
    batches = [pair(p.tolist(), t.tolist()) for p, t in zip(predicted.split(17), true.split(17), strict=True)]
    assert MATTHEWS.over(batches) == pytest.approx(matthews_corrcoef(true, predicted), rel=1e-12)
    assert F1.over(batches) == pytest.approx(f1_score(true, predicted), rel=1e-12)


@pytest.mark.parametrize(("predicted", "true", "correlation", "score"), [
    ([1, 1], [1, 0], 0.0, 2 / 3),  # all predictions of one class
    ([0, 0], [1, 0], 0.0, 0.0),
    ([1, 0], [0, 0], 0.0, 0.0),  # all examples of one class
    ([0, 0], [0, 0], 0.0, 0.0),
    ([1, 0], [1, 0], 1.0, 1.0),
    ([1, 0], [0, 1], -1.0, 0.0),
    ([1], [1], 0.0, 1.0),  # one example
])  # fmt: skip
def test_limits(predicted: list[int], true: list[int], correlation: float, score: float) -> None:
    assert MATTHEWS.over([pair(predicted, true)]) == correlation
    assert F1.over([pair(predicted, true)]) == pytest.approx(score)


def test_a_large_part_does_not_overflow() -> None:
    counts = torch.tensor([70_000.0, 1.0, 2.0, 80_000.0], dtype=torch.float64)
    assert MATTHEWS.compute(counts) == pytest.approx(0.99996, abs=1e-5)


def test_counting_on_a_gpu_does_not_wait() -> None:
    """The device "meta" stands for the GPU."""
    with NoWaiting():
        counts = confusion(torch.ones(3, 2, device="meta"), (None, torch.ones(3, dtype=torch.long, device="meta")))
    assert counts.device.type == "meta"
