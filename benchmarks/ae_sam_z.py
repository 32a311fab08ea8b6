"""How long the gradients are at the steps where AE-SAM takes SAM's second gradient.

For trainings on the built-in digits it prints the mean, over these steps, of z = (q - mean) / sqrt(var), where
q = ||g||^2 is of the step itself and mean and var are the running ones that include it. A choice by chance gives 0 or a
little less, as the mean of z over all steps. All batch sizes train for the same number of steps, by the recipe's
schedule. ``python benchmarks/ae_sam_z.py`` prints the table.
"""

from __future__ import annotations

import math
from argparse import ArgumentParser
from dataclasses import dataclass, field
from itertools import chain, count, islice
from typing import Any

from lowland import AESAM, Engine, Plan
from lowland.core import vec
from lowland.lab.budget import Budget
from lowland.lab.config import RunConfig
from lowland.lab.recipe import recipe
from lowland.lab.training.prepare import loader_of, task_of
from lowland.lab.training.trainer import Trainer

BATCHES = (16, 64, 128)
STEPS = 840  # 40 epochs of the recipe's batches of 64


@dataclass(frozen=True, kw_only=True)
class Watched(AESAM):
    """AE-SAM that notes every step's squared norm and whether it was a SAM step."""

    squares: list[float] = field(default_factory=list)
    chosen: list[bool] = field(default_factory=list)

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        inner = super().plan(engine, batch)
        here = yield next(inner)
        self.squares.append(vec.norm(here.grad).item() ** 2)
        self.chosen.append(True)
        try:
            asked = inner.send(here)
        except StopIteration as done:
            self.chosen[-1] = False
            return done.value
        try:
            inner.send((yield asked))
        except StopIteration as done:
            return done.value
        raise AssertionError("AE-SAM asks twice at most")


def deviations(squares: list[float], delta: float) -> list[float]:
    """The z of every step, by its own squared norm."""
    mean, var, found = squares[0], 0.0, [0.0]
    for q in squares[1:]:
        mean = delta * mean + (1 - delta) * q
        var = delta * var + (1 - delta) * (q - mean) ** 2
        found.append((q - mean) / math.sqrt(var) if var > 0 else 0.0)
    return found


def measure(batch_size: int, lag: int = 0, seed: int = 0, steps: int = STEPS) -> tuple[float, float]:
    """Train the perceptron on digits by its recipe.

    Args:
        batch_size: Examples in a batch.
        lag: AE-SAM's.
        seed: Of the training.
        steps: Its length.

    Returns:
        The mean of z over the SAM steps, and their share of all steps.
    """
    config = RunConfig(
        task="digits",
        model="mlp",
        method="ae-sam",
        seed=seed,
        recipe=recipe("digits", "mlp").replace(batch_size=batch_size),
        budget=Budget(limit=steps),
        device="cpu",
    )
    task = task_of(config)
    loader = loader_of(config, task)
    method = Watched(total=steps, lag=lag)
    trainer = Trainer(config, method, task)
    batches = chain.from_iterable(map(loader.batches, count()))
    for step, batch in enumerate(islice(batches, steps)):
        trainer.step(batch, step / steps)
    z = [z for z, sam in zip(deviations(method.squares, method.delta), method.chosen, strict=True) if sam]
    return sum(z) / len(z), len(z) / steps


def main() -> None:
    """Print a table of batch sizes, lags and seeds."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    print("batch  lag  share of SAM steps  z of the SAM steps, by seed")
    for batch_size in BATCHES:
        for lag in (0, 1):
            found = [measure(batch_size, lag, seed, options.steps) for seed in range(options.seeds)]
            share = sum(share for _, share in found) / len(found)
            print(f"{batch_size:5}  {lag:3}  {share:18.3f}  {' '.join(f'{z:+.3f}' for z, _ in found)}", flush=True)


if __name__ == "__main__":
    main()
