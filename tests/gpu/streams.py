"""Section streams: a training on a side stream is the training on the default stream."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from conformance import TEXTS

from gpu.checks import Check
from gpu.training import Training, difference

STEPS = 8
MOST = 1e-8
EXPECTATION = f"on a side stream and on the default stream the weights are the same in float64, up to {MOST:g}"


def checks() -> Iterator[Check]:
    """Every method."""
    for text in TEXTS.values():
        yield Check(text, partial(_difference, text), EXPECTATION, MOST)


def _difference(text: str) -> float:
    expected = Training(text).run(STEPS)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        found = Training(text).run(STEPS)
    torch.cuda.synchronize()
    return difference(found, expected)
