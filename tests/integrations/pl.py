"""A LightningModule, its Trainer, and the same training written by hand."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("lightning", exc_type=(ImportError, RuntimeError))

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from torchmetrics import Accuracy

from integrations.loops import data, net
from integrations.methods import METHODS
from integrations.trajectories import CUTS, Trajectory, sgd
from lowland.integrations.lightning import Sharpness

for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
    logging.getLogger(name).setLevel(logging.ERROR)

ROWS, BATCHES, EPOCHS = 8, 8, 2
HOOKS = ["on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step"]


class Calls:
    """How often `training_step` has run; no number of the module's, which passes without a report would take back."""

    count = 0


class Module(LightningModule):  # type: ignore[misc]
    """What a user writes, without a word about methods; it counts its hooks and notes what is logged."""

    def __init__(
        self, dropout: float = 0.0, optimizer: Callable[[nn.Module], Any] = sgd, step_lr: bool = False
    ) -> None:
        super().__init__()
        self.net = net(dropout)
        self.accuracy = Accuracy(task="multiclass", num_classes=3)
        self.make, self.step_lr = optimizer, step_lr
        self.hooks = dict.fromkeys(HOOKS, 0)
        self.calls, self.outputs = Calls(), list[float]()

    def training_step(self, batch: Any, index: int) -> Any:
        x, y = batch
        out = self.net(x)
        loss = cross_entropy(out, y)
        self.calls.count += 1
        self.accuracy(out, y)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log_dict({"accuracy": self.accuracy}, on_epoch=True, on_step=False)
        return {"loss": loss, "rows": len(x)}

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        self.outputs.append(float(outputs["loss"]))

    def configure_optimizers(self) -> Any:
        optimizer = self.make(self.net)
        if not self.step_lr:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)}

    def _count(self, name: str) -> None:
        self.hooks[name] += 1

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self._count("on_before_zero_grad")

    def on_before_backward(self, loss: Any) -> None:
        self._count("on_before_backward")

    def on_after_backward(self) -> None:
        self._count("on_after_backward")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self._count("on_before_optimizer_step")


def loader(dtype: torch.dtype = torch.float64) -> Any:
    """In order, also on several ranks, where Lightning would shuffle."""
    x, y = data(ROWS * BATCHES).tensors
    rows, ranks = TensorDataset(x.to(dtype), y), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        return DataLoader(rows, batch_size=ROWS)
    sampler = DistributedSampler(rows, ranks, int(os.environ["RANK"]), shuffle=False)
    return DataLoader(rows, batch_size=ROWS, sampler=sampler)


def trainer(*callbacks: Any, epochs: int = EPOCHS, **more: Any) -> Any:
    given = {
        "max_epochs": epochs,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(callbacks=list(callbacks), **{**given, **more})


def fitted(kind: Any, module: Any, *callbacks: Any, epochs: int = EPOCHS, sent: Any = None, **more: Any) -> Any:
    """A Trainer that has fitted the module, with its callback as `sharp`; without a method, Lightning's own."""
    options = {name: more.pop(name) for name in ("micro_batch", "resume", "rng") if name in more}
    path = more.pop("ckpt_path", None)
    sharp = None if kind is None else Sharpness(METHODS.get(kind, kind) if isinstance(kind, str) else kind, **options)
    made = trainer(*([] if sharp is None else [sharp]), *callbacks, epochs=epochs, **more)
    made.sharp = sharp
    made.fit(module, loader() if sent is None else sent, ckpt_path=path)
    return made


def by_hand(
    kind: str,
    model: nn.Module,
    k: int = 1,
    *,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd,
    clip: float = 0.0,
    clip_value: float = 0.0,
    step_lr: bool = False,
    ranks: int = 1,
) -> list[float]:
    """Every micro-batch is a step of the method, and the optimizer takes the mean of k of them."""
    x, y = data(ROWS * BATCHES).tensors
    base = optimizer(model)
    scheduler = torch.optim.lr_scheduler.StepLR(base, 1, gamma=0.5)

    def loss(m: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(m(batch[0]), batch[1])

    def cut(batch: Any) -> list[tuple[Any, float]]:
        """A sampler gives row after row to rank after rank; every rank cuts its own."""
        x, y = batch
        runs = [run for r in range(ranks) for run in torch.tensor_split(torch.arange(len(x))[r::ranks], CUTS)]
        return [((x[run], y[run]), len(run) / len(x)) for run in runs]

    hand, found = Trajectory(kind, model, base, loss, cut), []
    for _ in range(EPOCHS):
        for i, start in enumerate(range(0, len(x), ROWS * ranks)):
            if i % k == 0:
                base.zero_grad()
            part = slice(start, start + ROWS * ranks)
            found.append(float(hand.backward((x[part], y[part]), scale=1 / k)))
            if i % k == k - 1:
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                if clip_value:
                    nn.utils.clip_grad_value_(model.parameters(), clip_value)
                base.step()
        if step_lr:
            scheduler.step()
    return found
