"""The changes of the weights whose effects are measured, and the evaluation of the changed weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lowland.core.errors import ArgumentError
from lowland.executors.norm_stats import refresh_stats
from lowland.lab.data.loader import Loader
from lowland.lab.data.streams import derived
from lowland.lab.survival.second import Second, second_of, trained_further
from lowland.lab.survival.settings import Survival
from lowland.lab.survival.weights import add_noise_, quantize_
from lowland.lab.task import Task
from lowland.lab.training.evaluate import evaluate, training_loss
from lowland.lab.training.trained import Trained

Figures: TypeAlias = Mapping[str, Mapping[str, float]]  # the loss and the metrics by name, for each part of the data


@dataclass(frozen=True)
class Change:
    """A change of the weights whose effect is measured.

    Args:
        name: The beginning of the names of its measures.
        label: What is done, for titles and for the progress.
        settings: What the values depend on, besides those that all changes share.
        draws: Functions that change the deployed model in place and return its figures; one for each draw.
        second: The second task of forgetting.
    """

    name: str
    label: str
    settings: Mapping[str, Any]
    draws: Sequence[Callable[[nn.Module], Figures]]
    second: Second | None = None


class Judge:
    """Evaluates the weights of one run on the test part, and on the validation part if there is one.

    Args:
        trained: The run.
        wanted: The settings.

    Raises:
        ArgumentError: Running statistics are to be recomputed, but the model has none.
    """

    def __init__(self, trained: Trained, wanted: Survival) -> None:
        self.trained, self.wanted = trained, wanted
        parts = [name for name in ("test", "validation") if name in trained.loader.parts]
        self.examples = {name: len(trained.loader.index[name][: wanted.examples]) for name in parts}
        tracking = [m for m in trained.model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
        if wanted.refresh_stats and not tracking:
            raise ArgumentError(
                f"refresh_stats needs a model with running statistics, but {trained.record.model} has none; leave it "
                "out"
            )

    def figures(self, model: nn.Module) -> Figures:
        """The loss and the metrics of a model on each part, after its running statistics were recomputed if wanted."""
        if self.wanted.refresh_stats:
            self._refresh(model)
        return {part: self.of(self.trained.task, model, self.trained.loader, part) for part in self.examples}

    def of(self, task: Task, model: nn.Module, loader: Loader, part: str) -> Mapping[str, float]:
        """The loss and the metrics of a model on one part of a task's data."""
        batches = loader.evaluation(part=part, most=self.wanted.examples)
        config = self.trained.config
        return evaluate(task, model, batches, precision=config.recipe.precision, device=config.on())

    def _refresh(self, model: nn.Module) -> None:
        config = self.trained.config
        epochs = map(self.trained.loader.batches, count())
        batches = islice(chain.from_iterable(epochs), self.wanted.refresh_stats)
        with torch.random.fork_rng(devices=[]):  # of dropout
            torch.default_generator.manual_seed(derived(self.wanted.seed, "refresh"))
            refresh_stats(model, batches, training_loss(self.trained.task, config.recipe, config.on()))


def changes_of(judge: Judge) -> list[Change]:
    """All wanted changes, beginning with the unchanged weights."""
    wanted = judge.wanted
    changes = [Change("unchanged", "unchanged", {}, [judge.figures])]
    for bits in wanted.bits:
        given: dict[str, Any] = {"bits": bits, "granularity": wanted.granularity}
        changes.append(Change("quantized", f"{bits} bits", given, [partial(_quantized, judge, bits)]))
    for level in wanted.noise:
        given = {"noise": level, "norm": wanted.norm, "draws": wanted.draws, "seed": wanted.seed}
        draws = [partial(_noisy, judge, level, number) for number in range(wanted.draws)]
        changes.append(Change("noisy", f"noise {level:g}", given, draws))
    if wanted.forget is not None:
        second = second_of(judge.trained, wanted)
        label = f"after {second.text}"
        changes.append(
            Change("forgotten", label, second.settings(), [partial(_trained_further, judge, second)], second)
        )
    return changes


def _quantized(judge: Judge, bits: int, model: nn.Module) -> Figures:
    quantize_(model, bits, judge.wanted.granularity)
    return judge.figures(model)


def _noisy(judge: Judge, level: float, draw: int, model: nn.Module) -> Figures:
    add_noise_(model, level, judge.wanted.norm, judge.wanted.seed, draw)
    return judge.figures(model)


def _trained_further(judge: Judge, second: Second, model: nn.Module) -> Figures:
    """The figures of the first task, and those of the second as the part "second"; ``model`` does not change."""
    other = trained_further(second)
    learned = judge.of(second.task, other, second.loader, "test")
    figures = {**judge.figures(other), "second": learned}
    if all(bool(p.isfinite().all()) for p in other.parameters()):
        return figures
    # The second training diverged: what weights that are not finite predict says nothing about forgetting.
    return {part: dict.fromkeys(values, math.nan) for part, values in figures.items()}
