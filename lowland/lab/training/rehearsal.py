"""What a new run measures with trainers that are then discarded: peak memory, and the loss of the initial weights."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, count, islice

import torch

from lowland.lab.data.loader import Loader
from lowland.lab.training.evaluate import terms
from lowland.lab.training.trainer import Trainer
from lowland.planner.memory import meter

REHEARSED = 6  # the steps of a memory measurement: a cycle of LookSAM(k=5) and the next ascent step
UNTRAINED = 512  # the examples that the loss of the initial weights is the mean of


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


def untrained(make: Callable[[], Trainer], loader: Loader) -> float:
    """The mean training loss at the initial weights, over the first examples of the first epoch.

    All ranks must call this. The loss of the first batch alone scatters, in small batches by more than a training
    gains.

    Args:
        make: A function that makes a trainer of the run.
        loader: The loader of the run.
    """
    devices = [loader.device] if loader.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        trainer = make()
        engine, pieces = trainer.engine, trainer.recipe.accumulate
        total, divisor, seen = 0.0, 0.0, 0
        for batch in loader.batches(0):
            for part in engine.batches.chunk(batch, pieces) if pieces > 1 else (batch,):
                assert engine.loss_fn is not None
                losses, divided = terms(engine.loss_fn(trainer.model, part), engine.batches, part)
                total, divisor = total + float(losses), divisor + divided
            seen += loader.batch_size
            if seen >= UNTRAINED:
                break
    sums, counts = zip(*trainer.world.gather((total, divisor)), strict=True)
    return float(sum(sums) / (sum(counts) or 1))
