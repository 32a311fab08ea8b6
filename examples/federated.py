"""FedAvg whose clients train by a method: `.venv-flower/bin/python examples/federated.py`, after `make test-flower`.

Ten clients, each a process, have the classes of a task in proportions from a Dirichlet distribution. The table says
after how many rounds and bytes each method reaches an accuracy on the test part, and the accuracy after all rounds.
`--kill 3@2` kills the process of client 3 in the middle of round 2; `--nan 4@2` lets client 4 return NaN in round 2.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from flwr.app import ConfigRecord, MetricRecord
from torch import Tensor

from lowland import lab
from lowland.core.errors import ArgumentError
from lowland.integrations.flower import FedAvg, Local, Processes, arrays_of, client_app, load_arrays
from lowland.lab.data.dirichlet import dirichlet
from lowland.lab.data.streams import derived, stream
from lowland.lab.data.wrapped import dataset
from lowland.lab.recipe import make_optimizer
from lowland.lab.training.evaluate import evaluate
from lowland.methods import make as make_method
from lowland.runs.statistics import effect, estimate, holm, paired

NEEDED = ["lowland.lab.tasks.digits", "sklearn.datasets", "sklearn.model_selection"]  # what every client imports
METHODS = ["plain", "sam", "sampa", "looksam", "momentum-sam"]
ROOT = os.environ.get("LOWLAND_DATA")


@cache
def load(text: str, seed: int) -> tuple[lab.Task, Any, Any, Tensor]:
    """A task, its training and test part, and the classes of the training examples."""
    task = lab.load(text).seeded(seed)
    parts = {name: dataset(name, part) for name, part in task.datasets(Path(ROOT) if ROOT else None).items()}
    batch = parts["train"].batch(torch.arange(len(parts["train"])), None)
    labels = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    measured = [metric.name for metric in task.metrics]
    if "accuracy" not in measured or not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        raise ArgumentError(
            f"task must have classes, batches (inputs, labels) and the metric accuracy, because the split is by "
            f"classes, but {text} has not; take digits"
        )
    return task, parts["train"], parts["test"], labels


@cache
def split(task: str, clients: int, alpha: float, seed: int, fewest: int) -> list[Tensor]:
    return dirichlet(load(task, seed)[3], clients, alpha=alpha, seed=seed, fewest=fewest)


# The clients


def make(context: Any, config: Mapping[str, Any]) -> Local:
    """The local training of a client in a round."""
    run, seed, client = context.run_config, int(config["seed"]), int(context.node_config["partition-id"])
    task, train, _, _ = load(run["task"], seed)
    name = run["model"] or task.models[0]
    recipe = task.recipe(name).replace(lr=run["lr"], batch_size=run["batch-size"])
    model = task.model(name)
    index = split(run["task"], run["clients"], run["alpha"], seed, run["batch-size"])[client]
    epochs = range(run["local-epochs"])
    place = f"{client}@{config['server-round']}"
    given = list(batches(train, index, recipe.batch_size, seed, f"order of {place}", epochs))
    return Local(
        method=make_method(config["method"], fill=lambda key: task.defaults(key, name)),
        model=model,
        optimizer=make_optimizer(recipe, task.param_groups(model, recipe)),
        loss_fn=lambda model, batch: task.training_loss(model, batch, recipe),
        batches=Failing(given, killed=place == run["kill"], spoiled=place == run["nan"]),
        examples=len(index),
        memory=run["memory"],
        seed=derived(seed, "dropout", client) >> 32,
    )


def batches(train: Any, index: Tensor, size: int, seed: int, place: str, epochs: range) -> Iterator[Any]:
    """The full batches of some epochs, each in an order of its own."""
    for epoch in epochs:
        order = index[torch.randperm(len(index), generator=stream(seed, place, epoch))]
        for number, part in enumerate(order.split(size)[: len(index) // size]):
            yield train.batch(part, stream(seed, place, epoch, number))


class Failing(list[Any]):
    """Batches; before the second one the process is killed, or the inputs of the first one are NaN, if so wanted."""

    def __init__(self, given: list[Any], *, killed: bool, spoiled: bool) -> None:
        super().__init__(given)
        self.killed, self.spoiled = killed, spoiled

    def __iter__(self) -> Iterator[Any]:
        for number, (inputs, *rest) in enumerate(super().__iter__()):
            yield (inputs * math.nan if self.spoiled else inputs, *rest)
            if self.killed and number == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def client() -> Any:
    return client_app(make)


# The server


def train(grid: Processes, options: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    """One federated training; accuracies, bytes and what failed, by round."""
    task, _, test, _ = load(options.task, seed)
    torch.manual_seed(seed)
    model = task.initialize(task.model(options.model or task.models[0]))
    device = torch.device("cpu")

    def judge(number: int, arrays: Any) -> MetricRecord:
        load_arrays(model, arrays)
        found = [test.batch(part, None) for part in torch.arange(len(test)).split(1000)]
        return MetricRecord({"accuracy": evaluate(task, model, found, device=device)["accuracy"]})

    grid.reset()
    strategy = FedAvg(fraction_evaluate=0.0)
    config = ConfigRecord({"method": method, "seed": seed, "num-rounds": options.rounds})
    result = strategy.start(
        grid, arrays_of(model), options.rounds, train_config=config, evaluate_fn=judge, timeout=options.timeout
    )
    spent = [found.bytes_down + found.bytes_up for found in strategy.rounds]
    metrics = result.train_metrics_clientapp.values()
    return {
        "accuracy": [100 * found["accuracy"] for found in result.evaluate_metrics_serverapp.values()],  # from round 0
        "bytes": [sum(spent[:number]) for number in range(options.rounds + 1)],
        "gradients": sum(m["gradients"] for m in metrics) / sum(m["steps"] for m in metrics),
        "lost": [[r.number, *pair] for r in strategy.rounds for pair in (r.failed | r.refused).items()],
    }


def reached(run: dict[str, Any], accuracy: float) -> int | None:
    """The first round after which the accuracy is reached; None if there is none."""
    return next((number for number, value in enumerate(run["accuracy"]) if value >= accuracy), None)


def spread(values: list[float | None], most: str) -> str:
    """Median, smallest and largest value; missing values are larger than all others."""
    numbers = [math.inf if value is None else value for value in values]
    shown = [most if v == math.inf else f"{v:.3g}" for v in (median(numbers), min(numbers), max(numbers))]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def table(runs: dict[str, dict[int, dict[str, Any]]], accuracy: float) -> str:
    """A row for each method; differences have a verdict, corrected by Holm's method for their number."""
    first = next(iter(runs))
    final = {m: {seed: run["accuracy"][-1] for seed, run in by_seed.items()} for m, by_seed in runs.items()}
    head = f"rounds to {accuracy:g} % | MB to {accuracy:g} % | reached | final accuracy, % | minus {first} | gradients"
    lines = [f"| method | {head} |", "|---" * 7 + "|"]
    against = {method: paired(final[method], final[first]) for method in runs if method != first}
    corrected = dict(zip(against, holm([found.p if found else None for found in against.values()]), strict=True))
    for method, by_seed in runs.items():
        numbers = [reached(run, accuracy) for run in by_seed.values()]
        size = [None if n is None else r["bytes"][n] / 1e6 for n, r in zip(numbers, by_seed.values(), strict=True)]
        most = max(len(run["accuracy"]) - 1 for run in by_seed.values())
        counted = f"{sum(n is not None for n in numbers)} of {len(numbers)}"
        cost = sum(run["gradients"] for run in by_seed.values()) / len(by_seed)
        minus = ""
        if (found := against.get(method)) is not None:
            minus = f"{interval(found, '+')} {effect(found, corrected[method])}"
        cells = [spread(numbers, f">{most}"), spread(size, "more"), counted, interval(estimate(final[method].values()))]
        lines.append(f"| {method} | {' | '.join([*cells, minus, f'{cost:.2f}'])} |")
    return "\n".join(lines)


def interval(found: Any, sign: str = "") -> str:
    return f"{found.mean:{sign}.2f}" + ("" if found.half is None else f" ± {found.half:.2f}")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--task", default="digits", help="a task of lowland, or file.py:Name, with classes")
    made.add_argument("--model", default="", help="a model of the task")
    made.add_argument("--methods", nargs="+", default=METHODS, help="the first one is the baseline")
    made.add_argument("--seeds", type=int, default=5, help="trainings of each method")
    made.add_argument("--first-seed", type=int, default=0)
    made.add_argument("--clients", type=int, default=10)
    made.add_argument("--alpha", type=float, default=0.3, help="concentration of the Dirichlet distribution")
    made.add_argument("--rounds", type=int, default=20)
    made.add_argument("--local-epochs", type=int, default=1)
    made.add_argument("--batch-size", type=int, default=32)
    made.add_argument("--lr", type=float, help="constant in all rounds; by default the peak of the task's recipe")
    made.add_argument("--memory", choices=["anew", "kept"], default="anew", help="the methods' memory in each round")
    made.add_argument("--accuracy", type=float, default=90.0, help="in percent")
    made.add_argument("--at-once", type=int, default=2, help="clients that train at the same time")
    made.add_argument("--timeout", type=float, default=600.0, help="seconds until a client of a round is killed")
    made.add_argument("--kill", default="", help="CLIENT@ROUND, clients from 0, rounds from 1")
    made.add_argument("--nan", default="", help="CLIENT@ROUND")
    made.add_argument("--out", type=Path, help="a JSON file for all rounds")
    return made


def main(words: list[str] | None = None) -> dict[str, dict[int, dict[str, Any]]]:
    """Train with all methods and seeds, and print the table."""
    options = parser().parse_args(words)
    task = load(options.task, options.first_seed)[0]
    options.lr = task.recipe(options.model or task.models[0]).lr if options.lr is None else options.lr
    names = ("task", "model", "clients", "alpha", "local_epochs", "batch_size", "lr", "memory", "kill", "nan")
    settings = {name.replace("_", "-"): getattr(options, name) for name in names}
    runs: dict[str, dict[int, dict[str, Any]]] = {method: {} for method in options.methods}
    with Processes(client, options.clients, at_once=options.at_once, run_config=settings, preload=NEEDED) as grid:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for method in options.methods:
                runs[method][seed] = run = train(grid, options, method, seed)
                print(f"seed {seed}, {method}: {run['accuracy'][-1]:.2f} %", flush=True)
                for number, node, reason in run["lost"]:
                    print(f"  round {number} without client {node - 1}: {reason}")
                if options.out is not None:
                    options.out.write_text(json.dumps({"options": vars(options) | {"out": ""}, "runs": runs}))
    print(table(runs, options.accuracy))
    return runs


if __name__ == "__main__":
    main()
