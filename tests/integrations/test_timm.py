"""timm's model, optimizers, schedule, clipping and average in a loop with an engine; the recipe has no module."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("integrations.torchvision_operators")
pytest.importorskip("timm", exc_type=(ImportError, RuntimeError))

import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import lowland
from integrations.methods import METHODS
from integrations.trajectories import CUTS, Trajectory, apart

pytestmark = pytest.mark.filterwarnings("ignore")
EXAMPLE = Path(__file__).parents[2] / "examples" / "with_timm.py"
ROWS, BATCHES = 8, 6


def vit() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(img_size=8, patch_size=4, num_classes=3, embed_dim=16, depth=1, num_heads=2).double()


def loader() -> Any:
    g = torch.Generator().manual_seed(5)
    inputs = torch.randn(ROWS * BATCHES, 3, 8, 8, generator=g, dtype=torch.float64)
    return DataLoader(TensorDataset(inputs, torch.randint(0, 3, (len(inputs),), generator=g)), batch_size=ROWS)


def losses(model: nn.Module, batch: Any) -> torch.Tensor:
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def train(model: nn.Module, optimizer: Any, backward: Any, mode: str) -> nn.Module:
    """timm's loop; returns the averaged model."""
    schedule = CosineLRScheduler(optimizer, t_initial=BATCHES, t_in_epochs=False, warmup_t=2, warmup_lr_init=0.01)
    average = ModelEmaV3(model, decay=0.9)
    for step, batch in enumerate(loader()):
        backward(batch)
        dispatch_clip_grad(model.parameters(), value=0.05, mode=mode)
        optimizer.step()
        optimizer.zero_grad()
        average.update(model, step=step)
        schedule.step_update(step + 1)
    return average.module


@pytest.mark.parametrize(("opt", "mode"), [("momentum", "norm"), ("adamw", "agc")])
@pytest.mark.parametrize("kind", ["sam", "sampa", "looksam", "msam"])
def test_a_loop_follows_the_trajectory(kind: str, opt: str, mode: str) -> None:
    model, twin = vit(), vit()
    optimizer, hand = (create_optimizer_v2(m, opt=opt, lr=0.05, weight_decay=0.01) for m in (model, twin))
    engine = lowland.Engine(METHODS[kind], model, optimizer, losses)
    mine = train(model, optimizer, engine.backward, mode)

    def cut(batch: Any) -> Any:
        runs = torch.tensor_split(torch.arange(ROWS), CUTS)
        return [((batch[0][run], batch[1][run]), len(run) / ROWS) for run in runs]

    by_hand = Trajectory(kind, twin, hand, lambda m, b: losses(m, b).mean(), cut)
    theirs = train(twin, hand, by_hand.backward, mode)
    assert apart(model, twin) < 1e-10
    assert apart(mine, theirs) < 1e-10
    assert apart(model, vit()) > 1e-3


def test_a_model_inside_a_task_is_trained_as_it_is() -> None:
    """timm's ClassificationTask wraps the model; its parameters keep their names."""
    from timm.task import ClassificationTask

    model = vit()
    twin = copy.deepcopy(model)
    task = ClassificationTask(model, criterion=nn.CrossEntropyLoss(), verbose=False)
    optimizer, base = (torch.optim.SGD(m.parameters(), lr=0.05) for m in (model, twin))

    def loss_fn(task: Any, batch: Any) -> Any:
        return task(batch[0], batch[1])["loss"]

    for engine, opt in (
        (lowland.Engine(lowland.SAM(), task, optimizer, loss_fn), optimizer),
        (lowland.Engine(lowland.SAM(), twin, base, losses), base),
    ):
        for batch in loader():
            engine.backward(batch)
            opt.step()
            opt.zero_grad()
    assert apart(model, twin) < 1e-10


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert runpy.run_path(str(EXAMPLE))["main"]() > 0.9
    assert "SAM, 128 steps, test accuracy of the averaged model" in capsys.readouterr().out
