"""`check_task` passes lowland's own tasks, and names each promise that a made-up task breaks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import lowland
from lowland import Criterion
from lowland.core.errors import ArgumentError
from lowland.lab import Metric, Recipe, Task
from lowland.lab.names import make
from lowland.testing import check_task, task_checks

ERROR = Metric(name="error", update=lambda p, b: torch.stack([(p - b[1]).abs().sum(), torch.tensor(float(len(p)))]))


class Points:
    """Vectors whose sum is the target; augmented by noise where they get a generator."""

    def __init__(self, count: int, noise: float = 0.0) -> None:
        draw = torch.Generator().manual_seed(count)
        self.inputs, self.noise = torch.randn(count, 4, generator=draw), noise
        self.targets = self.inputs.sum(1, keepdim=True)

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, index: torch.Tensor, generator: torch.Generator | None) -> Any:
        return self.augmented(self.inputs[index], generator), self.targets[index]

    def augmented(self, inputs: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        if generator is None or not self.noise:
            return inputs
        return inputs + self.noise * torch.randn(inputs.shape, generator=generator)


@dataclass(frozen=True, kw_only=True)
class Sums(Task):
    """Adds numbers; every promise is kept, and the tasks below break one each."""

    width: int = 8
    sizes: tuple[int, ...] = (1, 2)
    note: str = ""
    metrics: ClassVar[tuple[Metric, ...]] = (ERROR,)

    def datasets(self, root: Any) -> Any:
        return {"train": Points(40, noise=0.1), "test": Points(20)}

    def model(self, name: str) -> nn.Module:
        return nn.Sequential(nn.Linear(4, self.width), nn.Tanh(), nn.Linear(self.width, 1))

    def loss(self, model: nn.Module, batch: Any) -> Any:
        return mse_loss(model(batch[0]), batch[1], reduction="none").mean(1)

    def recipe(self, model: str) -> Recipe:
        return Recipe(batch_size=10, epochs=1)


def broken(**changed: Any) -> Task:
    """A task that differs in these attributes, at the top of this module, so that its text can be made."""
    kind = type(f"Broken{len(globals())}", (Sums,), {"__module__": __name__, **changed})
    kind.__qualname__ = kind.__name__
    globals()[kind.__name__] = made = dataclass(frozen=True, kw_only=True)(kind)
    return made()


def parts(**given: Any) -> Any:
    return lambda self, root: {"train": Points(40), "test": Points(20)} | given


class Drawing(Points):
    def batch(self, index: torch.Tensor, generator: torch.Generator | None) -> Any:
        return self.inputs[index] + torch.randn(len(index), 4), self.targets[index]


class Global(Points):
    def augmented(self, inputs: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return inputs if generator is None else inputs + torch.randn(inputs.shape)


class Alike(Points):
    def augmented(self, inputs: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        return inputs if generator is None else inputs + 1


ONE = nn.Linear(4, 1)


def unseeded(self: Any, name: str, draw: torch.Generator = torch.Generator()) -> nn.Module:  # noqa: B008
    made = nn.Linear(4, 1)
    nn.init.normal_(made.weight, generator=draw)
    return made


def zeros(self: Any, name: str) -> nn.Module:
    made = nn.Linear(4, 1)
    for p in made.parameters():
        nn.init.zeros_(p)
    return made


def errors(model: nn.Module, batch: Any) -> torch.Tensor:
    return mse_loss(model(batch[0]), batch[1], reduction="none")


def centered(self: Any, model: nn.Module, batch: Any) -> Any:
    losses = errors(model, batch).mean(1)
    return losses / losses.detach().max()


def counted_wrongly(self: Any, model: nn.Module, batch: Any) -> Any:
    return lowland.Loss(errors(model, batch).mean(), len(batch[0]))


def by_place(self: Any, model: nn.Module, batch: Any) -> Any:
    return (errors(model, batch).flatten() * torch.arange(len(batch[0]))).mean()


def explodes(self: Any, model: nn.Module, batch: Any) -> Any:
    total = errors(model, batch).mean(1)
    return total + (model[0].weight.sum() - model[0].weight.sum().detach()).mul(1e38).mul(1e38)


def mean_of_means(prediction: Any, batch: Any) -> torch.Tensor:
    return torch.stack([(prediction - batch[1]).abs().mean(), torch.tensor(1.0)])


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no test": ({"datasets": lambda self, root: {"train": Points(40)}}, "parts_are_there: .*has no part test"),
    "empty": ({"datasets": parts(test=[])}, r"parts_are_there: .*datasets\(\)\['test'\] .* it is empty"),
    "iterable": ({"datasets": parts(test=iter([1]))}, "parts_are_there: .* it has no positions"),
    "draws": (
        {"datasets": parts(test=Drawing(20))},
        "batches_repeat: .*test gives a different batch each time without",
    ),
    "global": ({"datasets": parts(train=Global(40))}, "batches_repeat: .*train gives different batches for equal gen"),
    "alike": (
        {"datasets": parts(train=Alike(40))},
        "batches_repeat: .*train has the same augmentation for all generators",
    ),
    "one model": ({"model": lambda self, name: ONE}, "model_is_fresh: .*returns the same parameters twice"),
    "unseeded": ({"model": unseeded}, "model_is_fresh: .*has different weights for the same seed"),
    "zeros": ({"model": zeros}, "model_is_fresh: .*has the same weights for every seed"),
    "no module": ({"model": lambda self, name: 3}, "model_is_fresh: .*made 3"),
    "matrix": ({"loss": lambda self, m, b: errors(m, b)}, r"loss_is_a_loss: .*one loss per example, shape \(8,\)"),
    "no tensor": ({"loss": lambda self, m, b: 0.5}, "loss_is_a_loss: .*returned a float"),
    "not finite": ({"loss": lambda self, m, b: errors(m, b).mean(1) / 0}, "loss_is_a_loss: .*fresh model is inf"),
    "detached": ({"loss": lambda self, m, b: errors(m, b).mean(1).detach()}, "loss_is_a_loss: .*has no gradient"),
    "training loss": ({"training_loss": lambda self, m, b, r: None}, "loss_is_a_loss: .*returned a NoneType"),
    "criterion": (
        {
            "training_criterion": lambda self, recipe: Criterion(
                lambda m, b: m(b[0]), lambda out, b: 2 * (out - b[1]).square().mean(1)
            )
        },
        "criterion_agrees: .*training_loss of a batch is .*, but .* by training_criterion; let both",
    ),
    "batch": ({"loss": centered}, "losses_of_parts_combine: .*if combined from its parts"),
    "count": ({"loss": counted_wrongly}, "losses_of_parts_combine: .*let Loss.total, count. count the terms of total"),
    "sum": ({"loss": lambda self, m, b: errors(m, b).sum()}, "a_mean_is_no_sum: .*if every example comes twice"),
    "place": ({"loss": by_place}, "order_is_free: .*with its examples in reverse order"),
    "metric": ({"metrics": (Metric(name="mean", update=mean_of_means),)}, "metrics_add_up: .*metric mean is"),
    "two metrics": ({"metrics": (ERROR, ERROR)}, "metrics_add_up: .*metrics has two of the name error"),
    "judged loss": (
        {"judged": lambda self, m, b: (2 * self.loss(m, b), self.predict(m, b))},
        "judged_agrees: .*judged returns the loss",
    ),
    "judged": (
        {"judged": lambda self, m, b: (self.loss(m, b), 2 * self.predict(m, b))},
        "judged_agrees: .*judged returns another prediction than predict",
    ),
    "equality": (
        {"__eq__": lambda self, other: self is other, "__hash__": object.__hash__},
        "task_is_a_value: .*frozen",
    ),
    "seeded": ({"seeded": lambda self, seed: Sums()}, "task_is_a_value: .*task of another class"),
    "explodes": ({"loss": explodes}, "it_trains: .*a step of plain makes .*infinite"),
    "too few": ({"datasets": parts(train=Points(5))}, "it_trains: .*batch_size must be <= 5"),
}


@pytest.mark.parametrize(("changed", "message"), BROKEN.values(), ids=BROKEN)
def test_each_broken_promise_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=rf"(?m)^  {message}") as raised:
        check_task(broken(**changed))
    assert re.match(r"Broken\d+ breaks \d+ promises:\n", str(raised.value))


def test_a_task_with_open_fields_is_no_value() -> None:
    class Loose(Sums):
        __setattr__ = object.__setattr__

    with pytest.raises(AssertionError, match="its fields can be assigned"):
        check_task(Loose())


def test_a_field_that_is_no_text_is_named() -> None:
    with pytest.raises(AssertionError, match=r"task_is_a_value: .*makes another task"):
        check_task(Sums(note=object))  # type: ignore[arg-type]


@pytest.mark.parametrize("task", [Sums(), Sums(width=3, sizes=(4, 5), note="a, b=c"), Sums(note="3")], ids=str)
def test_a_task_that_keeps_its_promises(task: Task) -> None:
    assert check_task(task) == []


@pytest.mark.parametrize("text", ["digits", "digits:noise=0.4", "digits:noise=0.2,noise_kind=asymmetric,noise_seed=3"])
def test_lowland_s_own(text: str) -> None:
    assert check_task(make(text)) == []


def test_other_models_of_a_task() -> None:
    assert check_task(make("digits"), "convnet") == []


def test_a_mean_is_accepted_and_said_to_be_uncut() -> None:
    (remark,) = check_task(broken(loss=lambda self, m, b: errors(m, b).mean()))
    assert "is a mean, which cannot be cut" in remark


def test_a_batch_that_cannot_be_cut_is_accepted_and_said_to_be() -> None:
    class Together(Points):
        def batch(self, index: torch.Tensor, generator: torch.Generator | None) -> Any:
            return {"set": {1}, "pair": super().batch(index, generator)}

    (remark,) = check_task(
        broken(
            datasets=parts(train=Together(40), test=Together(20)),
            loss=lambda self, m, b: errors(m, b["pair"]).mean(1),
            predict=lambda self, m, b: m(b["pair"][0]),
            metrics=(),
        )
    )
    assert "cannot be cut, so accumulate, several ranks" in remark


def test_what_one_fault_causes_is_said_once() -> None:
    with pytest.raises(AssertionError) as raised:
        check_task(broken(datasets=parts(test=[])))
    assert str(raised.value).count("it is empty") == 1


def test_one_check_at_a_time() -> None:
    checks = dict(task_checks(Sums()))
    assert len(checks) == 12
    for check in checks.values():
        check()


def test_a_class_is_no_task() -> None:
    with pytest.raises(ArgumentError, match=r"task must be a lowland\.lab\.Task, but is .*pass an object"):
        check_task(Sums)  # type: ignore[arg-type]
