"""Metrics of classifications with two classes, from the counts of right and wrong predictions of each class."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lowland.lab.metric import Metric


def confusion(logits: Tensor, batch: Any) -> Tensor:
    """The examples of a batch by predicted and true class, (4,): predicted 1 and true 1, 1 and 0, 0 and 1, 0 and 0."""
    predicted, true = logits.argmax(1) == 1, batch[1] == 1
    pairs = (predicted & true, predicted & ~true, ~predicted & true, ~predicted & ~true)
    return torch.stack([pair.sum() for pair in pairs])


def matthews(counts: Tensor) -> float:
    """The correlation of predicted and true class; 0 if all predictions, or all examples, are of one class."""
    tp, fp, fn, tn = counts.tolist()
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return float((tp * tn - fp * fn) / math.sqrt(product)) if product else 0.0


def f1(counts: Tensor) -> float:
    """The harmonic mean of precision and recall of class 1; 0 if no example is, or is predicted, of class 1."""
    tp, fp, fn, _ = counts.tolist()
    return float(2 * tp / (2 * tp + fp + fn)) if tp + fp + fn else 0.0


MATTHEWS = Metric(name="matthews", update=confusion, compute=matthews)
F1 = Metric(name="f1", update=confusion, compute=f1, unit="%", scale=100)
