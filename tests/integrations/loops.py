"""A loop over an accelerator, and the same training written by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate", exc_type=(ImportError, RuntimeError))

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from integrations.methods import METHODS
from integrations.trajectories import CUTS, Trajectory, sgd
from lowland.integrations.accelerate import Sharpness

ROWS = 8


def data(count: int = 192) -> TensorDataset:
    g = torch.Generator().manual_seed(5)
    return TensorDataset(
        torch.randn(count, 6, generator=g, dtype=torch.float64), torch.randint(0, 3, (count,), generator=g)
    )


def net(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 3)).double()


def losses(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def fresh(k: int = 1, **more: Any) -> Accelerator:
    """An accelerator, as in a process of its own."""
    AcceleratorState._reset_state(False)
    GradientState._reset_state()
    return Accelerator(cpu=True, gradient_accumulation_steps=k, **more)


class Loop:
    """What a user writes; it can be stopped and saved between steps."""

    def __init__(
        self,
        kind: str,
        model: nn.Module,
        k: int = 1,
        *,
        optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd,
        clip: float = 0.0,
        rows: int = 192,
        loss_fn: Any = losses,
        **options: Any,
    ) -> None:
        self.accelerator = self.accelerator_of(k)
        loader = DataLoader(data(rows), batch_size=ROWS)
        base = optimizer(model)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, base, loader)
        method = METHODS.get(kind, kind)
        self.sharp = Sharpness(self.accelerator, method, self.model, self.optimizer, loss_fn, **options)
        self.clip, self.losses = clip, list[float]()

    def accelerator_of(self, k: int) -> Accelerator:
        """The accelerator; programs on shards have another."""
        return fresh(k)

    def train(self, first: int = 0, last: int | None = None) -> Loop:
        """Micro-batches from `first` on, before `last`."""
        for i, batch in enumerate(self.loader):
            if i < first or (last is not None and i >= last):
                continue
            with self.accelerator.accumulate(self.model):
                loss = self.sharp.backward(batch)
                if self.accelerator.sync_gradients:
                    assert loss is not None
                    self.losses.append(float(loss))
                    if self.clip:
                        self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
        return self

    def save(self, folder: Path) -> None:
        self.accelerator.save_state(str(folder))

    def load(self, folder: Path) -> Loop:
        self.accelerator.load_state(str(folder))
        return self


def by_hand(
    kind: str,
    model: nn.Module,
    k: int = 1,
    *,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd,
    clip: float = 0.0,
    rows: int = 192,
    ranks: int = 1,
    together: bool = False,
) -> list[float]:
    """One step of the method on all rows of an optimizer step; mSAM cuts the rows of every rank, or of all together."""
    inputs, targets = data(rows).tensors
    base = optimizer(model)

    def loss(m: nn.Module, batch: Any) -> Tensor:
        return losses(m, batch).mean()

    def cut(batch: Any) -> list[tuple[Any, float]]:
        x, y = batch
        mine = [torch.cat([torch.arange(len(x))[i : i + ROWS] for i in range(r * ROWS, len(x), ROWS * ranks)])
                for r in range(ranks)]  # fmt: skip
        each = [torch.tensor_split(m, CUTS) for m in mine]
        runs = [torch.cat(runs) for runs in zip(*each, strict=True)] if together else [run for m in each for run in m]
        return [((x[run], y[run]), len(run) / len(x)) for run in runs]

    hand, found = Trajectory(kind, model, base, loss, cut), []
    step = ROWS * k * ranks
    for start in range(0, rows, step):
        base.zero_grad()
        found.append(float(hand.backward((inputs[start : start + step], targets[start : start + step]))))
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        base.step()
    return found
