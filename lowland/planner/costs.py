"""Measures the cost of a method by running it on a tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import nn

from lowland.core.criterion import Criterion
from lowland.engine import Engine
from lowland.executors import Executor
from lowland.methods import make
from lowland.methods.base import Method
from lowland.methods.plain import Plain
from lowland.planner.memory import LiveTensors

STEPS = 100  # two windows of ARSAM, twenty cycles of LookSAM
WATCHED = 55  # steps under the memory meter: a window of ARSAM, with at least one refresh
ALIKE = 6  # steps under the memory meter if all steps cost the same
BATCH, WIDTH = 4, 64  # few examples, so that the parameters outweigh the activations
GOLDEN = (5**0.5 - 1) / 2  # its multiples fill the fractions between 0 and 1 evenly
EXAMPLES = 40  # of the tiny training set: an epoch has 10 batches

REQUIRED: dict[str, dict[str, Any]] = {
    "ausam": {"examples": EXAMPLES},
    "late": {"start": 0.5},
}
"""Values for the tiny training of fields that have no default because they depend on the training."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The average cost of a step.

    Args:
        gradients: All gradients, in full-batch equivalents.
        forwards: Forward passes without a gradient, in full-batch equivalents.
        weights: Gradients weighted by the fraction of parameter tensors that they cover; less than ``gradients`` if a
            method computes gradients of some tensors only.
        sequential: Gradients on the critical path, if enough devices compute independent gradients in parallel.
        reduces: All-reduces of P numbers under data parallelism.
        resident: Memory that the method keeps between steps, in multiples of the parameters P.
        peak: Peak memory beyond plain training, in multiples of P, including the resident memory.
    """

    gradients: float
    forwards: float
    weights: float
    sequential: float
    reduces: float
    resident: float
    peak: float

    @property
    def price(self) -> float:
        """Gradients, and a third of one for every forward pass: backward takes about twice as long as forward."""
        return self.gradients + self.forwards / 3


def specimen(key: str) -> Method:
    """The method of this key with its defaults, and with required fields set for the tiny training.

    Example:
        >>> specimen("late").start
        0.5
    """
    return make(key, fill=lambda k: REQUIRED.get(k, {}))


def measure(method: Method) -> Costs:
    """The costs of a method, measured by a tiny training and cached for the process."""
    return _measure(method, repr(method))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: on tensors of this size more threads are slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# The text is part of the cache key, because 1 and 1.0 are equal but can mean different methods (count and fraction).
@lru_cache(maxsize=64)
def _measure(method: Method, text: str) -> Costs:
    per_step: list[float] = []
    engine = run_specimen(method, STEPS, per_step)
    extra = _peak(method, ALIKE if max(per_step) - min(per_step) < 1e-6 else WATCHED) - _plain_peak()
    cost, parameters = engine.cost, sum(p.numel() for p in engine.params)
    vectors = [engine.memory[key] for key in engine.vector_keys]
    return Costs(
        gradients=cost.gradients / cost.steps,
        forwards=(cost.forwards - cost.gradients) / cost.steps,
        weights=cost.weights / cost.steps,
        sequential=cost.sequential / cost.steps,
        reduces=cost.reduces / cost.steps,
        resident=sum(t.numel() for v in vectors for t in v) / parameters,
        peak=extra / (4 * parameters),
    )


def placed(number: int, total: int) -> int:
    """The step of a training that number ``number`` of :data:`STEPS` stands for.

    The steps are spread over the training, and in each part of it at another place, so that they fall in with no cycle.

    Args:
        number: From 0.
        total: The steps of the training.

    Example:
        >>> [placed(n, 100) for n in (0, 1, 99)], placed(99, 50)
        ([0, 1, 99], 49)
    """
    part = total / STEPS
    return int(number * part + number * GOLDEN % 1 * max(part - 1, 0))


@_one_thread()
def run_specimen(
    method: Method,
    steps: int,
    each: list[float] | None = None,
    *,
    executor: Executor | None = None,
    examples: int = BATCH,
    total: int = STEPS,
) -> Engine:
    """Run the tiny training.

    Args:
        method: The method.
        steps: The number of steps.
        each: Receives a number per step that differs if the steps' gradients differ.
        executor: Answers the probes; by default as an engine does.
        examples: The examples of a step.
        total: The steps of the training that :data:`STEPS` steps stand for.

    Returns:
        The engine after the last step.
    """
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed every device
        hidden = [nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
        model = nn.Sequential(*hidden, nn.Linear(WIDTH, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    # The training may run on one of several ranks, without averaging over the ranks.
    engine = Engine(method, model, optimizer, _loss, allow_unaveraged=True, total_steps=total, executor=executor)
    for step in range(steps):
        engine.step = placed(step, total)
        inputs, targets = torch.randn(examples, WIDTH, generator=draw), torch.randint(4, (examples,), generator=draw)
        before = engine.cost.gradients + engine.cost.weights
        engine.backward((inputs, targets, (examples * step + torch.arange(examples)) % EXAMPLES))
        if each is not None:
            each.append(engine.cost.gradients + engine.cost.weights - before)
        optimizer.step()
        optimizer.zero_grad()
    return engine


_loss = Criterion(
    lambda model, batch: model(batch[0]),
    lambda logits, batch: nn.functional.cross_entropy(logits, batch[1], reduction="none"),
)


def _peak(method: Method, steps: int) -> int:
    meter = LiveTensors()
    with meter:
        run_specimen(method, steps)
    return meter.peak


@cache
def _plain_peak() -> int:
    return _peak(Plain(), ALIKE)
