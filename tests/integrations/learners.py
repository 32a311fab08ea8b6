"""A fastai Learner, its data, and the same training written by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

pytest.importorskip("integrations.torchvision_operators")
pytest.importorskip("fastai.callback.all", exc_type=(ImportError, RuntimeError))

import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import OptimWrapper
from torch import nn
from torch.nn.functional import cross_entropy

from integrations.methods import METHODS
from integrations.trajectories import CUTS, Trajectory
from lowland.integrations.fastai import Sharpness

ROWS, BATCH, EPOCHS, LR = 64, 8, 2, 0.05
# fastai keeps its losses in float32, so the model is in float32, too.
BOUND = 2e-6


def data() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    return torch.randn(ROWS, 6, generator=g), torch.randint(0, 3, (ROWS,), generator=g)


def net(*more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), *more, nn.Linear(16, 3))


SGD = partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=0.9))


def learner(model: nn.Module, *cbs: Any, opt: Any = SGD, loss: Any = None) -> Learner:
    rows = list(zip(*data(), strict=True))
    dls = DataLoaders(DataLoader(rows, bs=BATCH, num_workers=0), DataLoader(rows, bs=BATCH, num_workers=0))
    learn = Learner(dls, model, loss_func=loss or CrossEntropyLossFlat(), opt_func=opt, lr=LR, cbs=list(cbs), wd=0.0)
    return learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__ == "ProgressCallback"])


def fitted(kind: Any, model: nn.Module, *cbs: Any, epochs: int = EPOCHS, **options: Any) -> Learner:
    opt, loss = options.pop("opt", SGD), options.pop("loss", None)
    method = METHODS.get(kind, kind) if isinstance(kind, str) else kind
    learn = learner(model, Sharpness(method, **options), *cbs, opt=opt, loss=loss)
    with learn.no_logging():
        learn.fit(epochs)
    return learn


def by_hand(kind: str, model: nn.Module, clip: float = 0.0, epochs: int = EPOCHS) -> list[float]:
    x, y = data()
    base = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)

    def loss(m: nn.Module, batch: Any) -> torch.Tensor:
        return cross_entropy(m(batch[0]), batch[1])

    def cut(batch: Any) -> Any:
        runs = torch.tensor_split(torch.arange(len(batch[0])), CUTS)
        return [((batch[0][run], batch[1][run]), len(run) / len(batch[0])) for run in runs]

    hand, losses = Trajectory(kind, model, base, loss, cut), []
    for _ in range(epochs):
        for start in range(0, ROWS, BATCH):
            base.zero_grad()
            losses.append(float(hand.backward((x[start : start + BATCH], y[start : start + BATCH]))))
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            base.step()
    return losses
