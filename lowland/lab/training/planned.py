"""The training of a run, as the planner takes it."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from lowland.lab.config import RunConfig
from lowland.lab.data.loader import Loader
from lowland.lab.training.prepare import complete
from lowland.lab.training.trainer import Trainer
from lowland.planner.subject import Subject


def subject_of(config: RunConfig, loader: Loader) -> Subject:
    """Model, optimizer, loss and first batch of a run, whose steps are those of the recipe's epochs.

    Args:
        config: The run; its method is not used, and its weights are not sharded.
        loader: Its loader, which gives whole batches.
    """
    plain = replace(config, method="plain", shard=False)
    subject = Subject.of(Trainer(plain, complete(plain, loader)).engine, next(islice(loader.batches(0), 1)))
    return replace(subject, total=max(round(config.recipe.epochs * len(loader)), 1))
