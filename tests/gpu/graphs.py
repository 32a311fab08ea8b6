"""Section graphs: compiled models and captured CUDA graphs train as the model itself does."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from conformance import TEXTS
from torch import nn

from gpu.checks import Check
from gpu.training import Net, Training, batch_of, difference, here

STEPS = 12
MOST = 1e-8
# All their passes are on whole batches: a captured graph takes inputs of one shape only.
CAPTURED = ("plain", "sam", "sampa", "looksam", "wsam", "gsam", "vsam", "friendly-sam", "asam", "momentum-sam")
WAYS = {
    "make_graphed_callables": CAPTURED,
    "reduce-overhead": ("sam", "sampa", "looksam", "wsam", "gsam", "vsam"),  # they keep a gradient across passes
    "default": ("sam", "sampa", "micro-sam"),
}


def checks() -> Iterator[Check]:
    """Methods on captured graphs, on torch.compile with CUDA graphs, and on torch.compile without."""
    for way, keys in WAYS.items():
        expectation = f"{way} gives the weights and running statistics of the model itself in float64, up to {MOST:g}"
        for key in keys:
            yield Check(f"{TEXTS[key]}, {way}", partial(_difference, TEXTS[key], way), expectation, MOST)


def _difference(text: str, way: str) -> float:
    expected = Training(text).run(STEPS)
    torch.compiler.reset()
    wrap = captured if way == "make_graphed_callables" else partial(torch.compile, mode=way)
    return difference(Training(text, wrap=wrap).run(STEPS), expected)


def captured(net: Net) -> nn.Module:
    """The network with forward and backward as CUDA graphs; the warm-up of the capture leaves no trace."""
    before = {name: t.clone() for name, t in net.state_dict().items()}
    graphed = torch.cuda.make_graphed_callables(net, (batch_of(0, here(), torch.float64)[0],))
    net.load_state_dict(before)
    return graphed
