"""How long mSAM's step takes with each executor, in multiples of a step of plain training.

The lab's training on the built-in digits, of the perceptron unless ``--model`` names another network. All trainings
take turns, step by step, so that changes of the machine's speed affect them alike. A figure is the median of the ratios
between the processor times of one round's steps, because other processes may use the machine, too.

    OMP_NUM_THREADS=1 python benchmarks/micro_sam_together.py
"""

from __future__ import annotations

import statistics
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from itertools import count
from typing import Any

import lowland
from lowland import Engine, Executor
from lowland.lab import names
from lowland.lab.budget import Budget
from lowland.lab.config import RunConfig
from lowland.lab.training.prepare import loader_of
from lowland.lab.training.trainer import Trainer

WARMUP = 40  # rounds that are not counted


def trainer(config: RunConfig, method: lowland.Method, executor: Executor | str | None) -> Trainer:
    """A training of the lab whose engine has this executor."""
    made = Trainer(config, method)
    made.engine = Engine(method, made.model, made.optimizer, made.engine.loss_fn, executor=executor)
    return made


def endless(config: RunConfig) -> Iterator[Any]:
    """The batches of one epoch after the other."""
    loader = loader_of(config)
    for epoch in count():
        yield from loader.batches(epoch)


def times(trainers: dict[str, Trainer], batches: Iterator[Any], rounds: int) -> dict[str, list[float]]:
    """The processor seconds of every step after the warm-up, by name; the order changes from round to round."""
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    order = list(trainers)
    for number in range(WARMUP + rounds):
        batch = next(batches)
        order.append(order.pop(0))
        for name in order:
            start = time.process_time()
            trainers[name].step(batch, number / (WARMUP + rounds))
            if number >= WARMUP:
                seconds[name].append(time.process_time() - start)
    return seconds


def main() -> None:
    """Measure and print the table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--m", type=int, default=4)
    options = parser.parse_args()
    task = names.make("digits")
    recipe = task.recipe(options.model)
    config = RunConfig(
        task=task, model=options.model, method="plain", seed=0, recipe=recipe, budget=Budget(limit=1), threads=1
    )
    method = lowland.MicroSAM(m=options.m)
    executors = {"Local": lowland.Local(), f"Batched({options.m})": lowland.Batched(options.m), "auto": "auto"}
    trainers = {"plain": trainer(config, lowland.Plain(), None)}
    trainers |= {f"mSAM, {name}": trainer(config, method, executor) for name, executor in executors.items()}
    seconds = times(trainers, endless(config), options.rounds)
    plain = seconds["plain"]
    print(f"{options.model}, batch of {recipe.batch_size}, m = {options.m}, {options.rounds} rounds")
    for name, own in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(own, plain, strict=True))
        print(f"{name:16} {1000 * statistics.median(own):7.3f} ms {ratio:6.2f} ×")


if __name__ == "__main__":
    main()
