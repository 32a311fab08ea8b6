"""Metrics of torchmetrics in the laboratory: every rank evaluates all examples, so ranks must not add up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import Tensor

from lowland.lab.metric import Metric

torchmetrics = pytest.importorskip("torchmetrics")

PAIRS = [
    (torch.tensor([0.1, 0.8, 0.4]), (None, torch.tensor([0, 1, 1]))),
    (torch.tensor([0.9]), (None, torch.tensor([1]))),
]


class Examples(torchmetrics.Metric):
    """The number of examples."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("examples", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        self.examples += len(prediction)

    def compute(self) -> Tensor:
        return self.examples


MAKERS: dict[str, Callable[[], Any]] = {
    "auroc": torchmetrics.classification.BinaryAUROC,
    "examples": Examples,
    "composition": lambda: Examples() + Examples(),
}


def value(kind: str) -> float:
    return Metric(name=kind, torchmetrics=MAKERS[kind]).over(PAIRS)


@pytest.mark.parametrize(("kind", "expected"), [("auroc", 1), ("examples", 4), ("composition", 8)])
def test_two_ranks_find_what_one_process_finds(kind: str, expected: float) -> None:
    assert value(kind) == expected
    assert on_ranks(2, value, kind) == [expected, expected]
