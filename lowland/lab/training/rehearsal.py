"""What a new run measures with trainers that are then discarded: peak memory, and the loss of the initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain, count, islice
from typing import Any

import torch

from lowland.lab.data.loader import Loader
from lowland.lab.training.evaluate import total_of
from lowland.lab.training.losses import Untrained
from lowland.lab.training.trainer import Trainer
from lowland.planner.memory import meter

REHEARSED = 6  # the steps of a memory measurement: a cycle of LookSAM(k=5) and the next ascent step
UNTRAINED = 512  # the examples, at least, that tell the loss of the initial weights; an epoch may have fewer


def rehearse(make: Callable[[], Trainer], loader: Loader, steps: int = REHEARSED) -> int:
    """Measure the peak memory of a run in its first steps, with a separate trainer that is then discarded.

    So the measurement neither slows nor changes the run. It includes model, optimizer state, memory of the method,
    batches and activations, but not the data set.

    Args:
        make: A function that makes a trainer of the run.
        loader: The loader of the run.
        steps: The number of steps.

    Returns:
        The peak memory in bytes.
    """
    devices = [loader.device] if loader.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        if devices:  # cuBLAS and cuDNN allocate memory that they keep, which is not the first run's of a process
            _rehearsed(make(), loader, 1)
        with meter(loader.device) as measured:
            _rehearsed(make(), loader, steps)
    return measured.peak


def _rehearsed(trainer: Trainer, loader: Loader, steps: int) -> None:
    """Take steps with a trainer, which then is discarded."""
    batches = chain.from_iterable(loader.batches(epoch) for epoch in count())
    for batch in islice(batches, steps):
        trainer.step(batch, 0.0)


def untrained(make: Callable[[], Trainer], loader: Loader) -> Untrained:
    """The training loss at the initial weights, on the first batches of the first epoch. All ranks must call this.

    The loss of the first batch alone scatters, in small batches by more than a training gains.

    Args:
        make: A function that makes a trainer of the run.
        loader: The loader of the run.
    """
    devices = [loader.device] if loader.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        trainer = make()
        batches = islice(loader.batches(0), math.ceil(UNTRAINED / loader.batch_size))
        sums = [_of_batch(trainer, batch) for batch in batches]
    of_ranks = [torch.tensor(each, dtype=torch.float64) for each in trainer.world.gather(sums)]
    totals, counts = torch.stack(of_ranks).sum(0).unbind(1)
    means = totals / counts.clamp(min=1)
    scatter = float(means.std() * counts.mean().sqrt()) if len(means) > 1 else 0.0
    examples = max(float(counts.sum()), 1.0)
    return Untrained(loss=float(totals.sum()) / examples, scatter=scatter, examples=examples)


def _of_batch(trainer: Trainer, batch: Any) -> tuple[float, float]:
    """The sum of the losses of this rank's part of a batch, and their number; in the micro-batches of the training."""
    engine, pieces = trainer.engine, trainer.recipe.accumulate
    assert engine.loss_fn is not None
    sums = [0.0, 0.0]
    for part in engine.batches.chunk(batch, pieces) if pieces > 1 else (batch,):
        total, divisor = total_of(engine.loss_fn(trainer.model, part), engine.batches, part)
        sums[0] += float(total)
        sums[1] += divisor
    return sums[0], sums[1]
