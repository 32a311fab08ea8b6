from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from lowland import Criterion, Loss
from lowland.lab.recipe import Recipe
from lowland.lab.task import Task
from lowland.lab.tasks.digits import Digits
from lowland.lab.training.evaluate import better, criterion_of, evaluate, fingerprint, headline, training_loss

CPU = torch.device("cpu")
LOGITS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
TARGETS = torch.tensor([0, 0, 0])
LOSSES = torch.log1p(torch.exp(torch.tensor([-2.0, 1.0, -3.0])))


@dataclass(frozen=True)
class Weighed(Task):
    """The loss of digits with another return."""

    kind: str = "loss"

    def datasets(self, root: Any) -> Any:
        return {}

    def model(self, name: str) -> nn.Module:
        return nn.Identity()

    def loss(self, model: nn.Module, batch: Any) -> Any:
        losses = Digits().loss(model, batch)
        return losses.mean() if self.kind == "mean" else Loss(losses.sum(), torch.tensor(float(len(losses))))


@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize("task", [Digits(), Weighed(), Weighed("mean")], ids=["examples", "sum", "mean"])
def test_figures_do_not_depend_on_the_batches(cut: int, task: Task) -> None:
    batches = list(zip(LOGITS.split(cut), TARGETS.split(cut), strict=True))
    figures = evaluate(task, nn.Identity(), batches, device=CPU)
    assert figures["loss"] == pytest.approx(float(LOSSES.mean()))
    assert figures.get("accuracy", 2 / 3) == 2 / 3


def test_evaluation_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    model[1].eval()
    before = fingerprint(model)
    evaluate(Digits(), model, [(LOGITS, TARGETS)], device=CPU)
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert fingerprint(model) == before


def test_training_loss_is_per_example() -> None:
    batch = (LOGITS, TARGETS, torch.arange(3))
    torch.testing.assert_close(training_loss(Digits(), Recipe(), CPU)(nn.Identity(), batch), LOSSES)
    smooth: Any = training_loss(Digits(), Recipe(label_smoothing=0.5), CPU)(nn.Identity(), batch)
    torch.testing.assert_close(smooth, nn.CrossEntropyLoss(reduction="none", label_smoothing=0.5)(LOGITS, TARGETS))


def test_a_task_in_two_parts_trains_with_the_same_loss() -> None:
    loss: Any = training_loss(Digits(), Recipe(label_smoothing=0.5), CPU)
    assert isinstance(loss, Criterion)
    expected = Digits().training_loss(nn.Identity(), (LOGITS, TARGETS), Recipe(label_smoothing=0.5))
    assert torch.equal(loss(nn.Identity(), (LOGITS, TARGETS)), expected)


class Smoother(Digits):
    def training_loss(self, model: nn.Module, batch: Any, recipe: Recipe) -> torch.Tensor:
        return 2 * super().training_loss(model, batch, recipe)


class Both(Smoother):
    def training_criterion(self, recipe: Recipe) -> Criterion:
        return Criterion(lambda model, batch: model(batch[0]), lambda logits, batch: 3 * logits.sum(1))


class OnlyEvaluated(Digits):
    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:  # which no class of images trains with
        return model(batch[0]).sum(1)


class Smaller(Weighed):
    def training_criterion(self, recipe: Recipe) -> Criterion:
        return Criterion(lambda model, batch: model(batch[0]), lambda logits, batch: logits.sum(1))


class SmallerStill(Smaller):
    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return model(batch[0]).sum(1)


@pytest.mark.parametrize(
    ("task", "has"),
    [
        (Digits(), True),
        (Smoother(), False),
        (Both(), True),
        (OnlyEvaluated(), True),
        (Weighed(), False),
        (Smaller(), True),
        (SmallerStill(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_parts_that_a_class_inherits_do_not_outlive_its_own_loss(task: Task, has: bool) -> None:
    assert (criterion_of(task, Recipe()) is not None) == has
    assert isinstance(training_loss(task, Recipe(), CPU), Criterion) == has


def test_bf16_is_in_the_forward_pass_alone() -> None:
    model, batch = nn.Linear(2, 2), (LOGITS, TARGETS)
    usual: Any = training_loss(Digits(), Recipe(), CPU)(model, batch)
    low: Any = training_loss(Digits(), Recipe(precision="bf16"), CPU)(model, batch)
    assert low.dtype == torch.float32
    assert not torch.equal(usual, low)
    torch.testing.assert_close(usual, low, rtol=0.05, atol=0.05)


def test_better_goes_by_the_first_metric_and_its_direction() -> None:
    assert better(Digits(), {"accuracy": 0.5, "loss": 9.0}, {"accuracy": 0.4, "loss": 1.0})
    assert not better(Digits(), {"accuracy": 0.4}, {"accuracy": 0.4})
    assert better(Weighed(), {"loss": 1.0}, {"loss": 2.0})
    assert better(Weighed(), {"loss": 1.0}, None)
    assert not better(Weighed(), {"loss": float("nan")}, None)
    assert better(Weighed(), {"loss": 1.0}, {"loss": float("nan")})


def test_headlines() -> None:
    assert headline(Digits.metrics, {"accuracy": 0.98765}) == "accuracy 98.77 %"
    assert headline((), {"loss": 0.123456}) == "loss 0.1235"
    assert headline(Digits.metrics, {"accuracy": None}) == "no accuracy"


def test_fingerprints_see_every_bit() -> None:
    model = nn.BatchNorm1d(3)
    before = fingerprint(model)
    with torch.no_grad():
        model.weight[0] = torch.nextafter(model.weight[0], torch.tensor(2.0))
    changed = fingerprint(model)
    assert model.num_batches_tracked is not None
    model.num_batches_tracked += 1
    assert len({before, changed, fingerprint(model)}) == 3
