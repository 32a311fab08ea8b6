"""What a method costs, read off its plan by running it on a tiny model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lowland.engine import Engine
from lowland.lab.evaluate import cross_entropy
from lowland.lab.memory import LiveTensors
from lowland.method import Method
from lowland.methods.plain import Plain

STEPS = 100  # two windows of ARSAM, twenty cycles of LookSAM
WATCHED = 55  # steps under the memory meter: a whole window of ARSAM, which has at least one refresh
EXAMPLES, WIDTH = 4, 64  # few examples, so that the parameters outweigh the activations


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one step costs on average.

    Args:
        gradients: In full-batch equivalents, in total.
        sequential: The same, one after another, with devices to spare.
        reduces: All-reduces of P numbers under data parallelism.
        resident: What the method keeps from step to step, in multiples of the parameters P.
        peak: What it needs at most beyond plain training, in multiples of P, the kept part included.
    """

    gradients: float
    sequential: float
    reduces: float
    resident: float
    peak: float


def measure(method: Method) -> Costs:
    """Run the method and count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on tensors this small, threads only wait for each other
    try:
        return _measure(method)
    finally:
        torch.set_num_threads(threads)


def _measure(method: Method) -> Costs:
    engine = _train(method, STEPS)
    cost, parameters = engine.cost, sum(p.numel() for p in engine.params)
    vectors = [engine.memory[key] for key in engine.vector_keys]
    return Costs(
        gradients=cost.gradients / cost.steps,
        sequential=cost.sequential / cost.steps,
        reduces=cost.reduces / cost.steps,
        resident=sum(t.numel() for v in vectors for t in v) / parameters,
        peak=(_peak(method) - _peak(Plain())) / (4 * parameters),
    )


def _train(method: Method, steps: int) -> Engine:
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4)]
        model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    engine = Engine(method, model, optimizer, cross_entropy())
    for _ in range(steps):
        batch = torch.randn(EXAMPLES, WIDTH, generator=draw), torch.randint(4, (EXAMPLES,), generator=draw)
        engine.backward(batch)
        optimizer.step()
        optimizer.zero_grad()
    return engine


def _peak(method: Method) -> int:
    meter = LiveTensors()
    with meter:
        _train(method, WATCHED)
    return meter.peak
