"""The loss of the initial weights, and which trainings have diverged from it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lowland.core.errors import ArgumentError
from lowland.lab.budget import Budget
from lowland.lab.config import RunConfig
from lowland.lab.tasks.diabetes import Diabetes
from lowland.lab.training.checkpoint import ALONE
from lowland.lab.training.losses import Losses, Untrained
from lowland.lab.training.prepare import complete, loader_of
from lowland.lab.training.rehearsal import UNTRAINED, untrained
from lowland.lab.training.run import train
from lowland.lab.training.trainer import Trainer, fresh_model


def of_initial_weights(config: Any) -> Untrained:
    loader = loader_of(config)
    return untrained(lambda: Trainer(config, complete(config, loader)), loader)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_loss_of_the_initial_weights_is_a_mean_over_the_first_batches(config: Any, accumulate: int) -> None:
    config = replace(config, recipe=config.recipe.replace(batch_size=16, accumulate=accumulate))
    loader, model = loader_of(config), fresh_model(config).train()
    losses: list[torch.Tensor] = []
    for batch, _ in zip(loader.batches(0), range(UNTRAINED // 16), strict=False):
        losses.append(cross_entropy(model(batch[0]), batch[1], reduction="none").detach().double())
    before = torch.get_rng_state()
    found = of_initial_weights(config)
    every, means = torch.cat(losses), torch.stack([each.mean() for each in losses])
    assert (found.loss, found.examples) == (pytest.approx(every.mean().item(), rel=1e-6), len(every))
    assert found.scatter == pytest.approx(means.std().item() * 16**0.5, rel=1e-5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("first", "scatter", "last", "diverged"),
    [
        (2.0, 0.0, 1.9, False),
        (2.0, 0.0, 2.09, False),
        (2.0, 0.0, 2.11, True),
        (-2.0, 0.0, -1.95, False),
        (-2.0, 0.0, -1.8, True),
        (0.0, 0.0, 1e-9, True),
        (2.0, 1.0, 2.4, False),  # the standard error is sqrt(1/100 + 1/100) = 0.141
        (2.0, 1.0, 2.43, True),
        (2.0, 1.0, float("nan"), True),
        (2.0, 1.0, float("inf"), True),
        (None, 0.0, 9.0, False),
        (None, 0.0, float("nan"), True),
        (2.0, 0.0, None, False),
    ],
)
def test_a_loss_that_ends_above_that_of_the_initial_weights(
    first: float | None, scatter: float, last: float | None, diverged: bool
) -> None:
    losses = Losses(ALONE, torch.device("cpu"))
    losses.untrained = None if first is None else Untrained(first, scatter, 100.0)
    if last is not None:
        losses.add(torch.tensor(last), 100)
        losses.end_epoch()
    assert losses.diverged is diverged
    again = Losses(ALONE, torch.device("cpu"))
    again.load(**losses.state())
    assert again.diverged is diverged


def test_a_checkpoint_of_an_earlier_version() -> None:
    losses = Losses(ALONE, torch.device("cpu"))
    losses.load(seen=[(3.0, 2.0)], first=0.1, last=5.0)
    assert (losses.last, losses.diverged) == (5.0, False)
    assert losses.end_epoch() == 1.5


def test_one_easy_batch_is_no_divergence(tmp_path: Any) -> None:
    """The loss of a small first batch may be far below the mean, and below that of the trained model."""
    task = Diabetes()
    recipe = task.recipe("mlp").replace(batch_size=4)
    config = RunConfig(
        task=task, model="mlp", method="plain", seed=2, recipe=recipe, budget=Budget(limit=8 * 88), device="cpu"
    )
    first = task.training_loss(fresh_model(config), next(loader_of(config).batches(0)), recipe).mean()
    end = train(config, tmp_path / "run")
    (last,) = [json.loads(line) for line in (tmp_path / "run" / "run.jsonl").read_text().splitlines()][-2:-1]
    assert last["train_loss"] > first.item()
    assert end["diverged"] is False


def test_a_learning_rate_that_is_far_too_high_is_one(config: Any, tmp_path: Any) -> None:
    config = replace(config, recipe=config.recipe.replace(lr=1e6), method="plain")
    assert train(config, tmp_path / "run")["diverged"] is True


class Same:
    """Returns one module again and again."""

    def __init__(self, part: bool = False, frozen: bool = False) -> None:
        self.net = nn.Linear(64, 10)
        self.part = part
        self.net.requires_grad_(not frozen)

    def __call__(self) -> nn.Module:
        flat = nn.Flatten()
        return nn.Sequential(flat, self.net, *([nn.Linear(10, 10)] if self.part else []))


@pytest.mark.parametrize("part", [False, True])
def test_a_model_that_is_not_made_anew_is_refused(config: Any, tmp_path: Any, part: bool) -> None:
    with pytest.raises(ArgumentError, match=r"must be made anew for every run, but two of them share the weights 1"):
        train(replace(config, model=Same(part)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_frozen_weights_may_be_shared(config: Any, tmp_path: Any) -> None:
    assert train(replace(config, model=Same(part=True, frozen=True)), tmp_path / "run")["step"] == 12
