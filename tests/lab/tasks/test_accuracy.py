"""The counts behind the accuracy of a classification."""

from __future__ import annotations

import torch
from waiting import NoWaiting

from lowland.lab.tasks.classification import ACCURACY


def test_hits_and_examples_of_a_batch() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]])
    counts = ACCURACY.update(logits, (None, torch.tensor([0, 1, 1])))
    assert counts.tolist() == [2, 3]


def test_counting_on_a_gpu_does_not_wait() -> None:
    """The device "meta" stands for the GPU."""
    with NoWaiting():
        counts = ACCURACY.update(
            torch.ones(3, 2, device="meta"), (None, torch.ones(3, dtype=torch.long, device="meta"))
        )
    assert counts.device.type == "meta"
