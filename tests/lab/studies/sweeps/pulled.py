"""A user's own task file: one weight, which the parts of the data pull to different places."""

import os
import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.utils.data import TensorDataset

from lowland import lab


def gap(prediction, batch):
    return torch.stack([(prediction - batch[1]).abs().sum(), torch.tensor(float(len(batch[0])))])


@dataclass(frozen=True, kw_only=True)
class Pulled(lab.Task):
    """Training and validation pull the weight from 0 to ``to``, the test part pulls it the other way."""

    to: float = 1.0

    def datasets(self, root):
        parts = {"train": (32, self.to), "validation": (8, self.to), "test": (8, -self.to)}
        return {
            name: TensorDataset(torch.ones(count, 1), torch.full((count, 1), to)) for name, (count, to) in parts.items()
        }

    def model(self, name):
        made = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(made.weight)
        return made

    def loss(self, model, batch):
        time.sleep(float(os.environ.get("SLOW", "0")))
        return ((model(batch[0]) - batch[1]) ** 2).mean(1)

    def recipe(self, model):
        return lab.Recipe(
            lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0, schedule="constant", warmup=0.0, epochs=3,
            batch_size=8,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Gap(Pulled):
    """Measured by the distance from the place, where less is better."""

    metrics: ClassVar = (lab.Metric(name="gap", update=gap, higher=False),)


@dataclass(frozen=True, kw_only=True)
class Nearness(Pulled):
    """Measured by minus the distance, where more is better."""

    metrics: ClassVar = (lab.Metric(name="nearness", update=gap, compute=lambda t: -float(t[0] / t[1]), higher=True),)


@dataclass(frozen=True, kw_only=True)
class Lost(Pulled):
    """Measured by what is no number, while the loss is one."""

    metrics: ClassVar = (lab.Metric(name="lost", update=gap, compute=lambda totals: float("nan")),)


@dataclass(frozen=True, kw_only=True)
class Unheld(Pulled):
    """Without a validation part."""

    def datasets(self, root):
        parts = super().datasets(root)
        return {name: parts[name] for name in ("train", "test")}
