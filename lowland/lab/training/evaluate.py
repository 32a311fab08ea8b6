"""The training loss of a run, and the evaluation of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core.batch import Batches
from lowland.core.criterion import Criterion
from lowland.core.loss import Loss, LossFn
from lowland.lab.metric import Metric
from lowland.lab.recipe import Recipe
from lowland.lab.task import Task


def training_loss(task: Task, recipe: Recipe, device: torch.device) -> LossFn:
    """The loss function of a training: the task's ``training_loss``, under autocast if the precision is bf16.

    It is in two parts, as a :class:`lowland.Criterion`, if the task has its training loss so.
    """

    def cast(function: Callable[..., Any], *more: Any) -> Callable[[Any, Any], Any]:
        def computed(first: Any, batch: Any) -> Any:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bf16"):
                return function(first, batch, *more)

        return computed

    parts = criterion_of(task, recipe)
    if parts is None:
        return cast(task.training_loss, recipe)
    return Criterion(cast(parts.forward), cast(parts.criterion))


def criterion_of(task: Task, recipe: Recipe) -> Criterion | None:
    """The training loss in two parts; None if the task's class does not have the one that it trains with so.

    A class that overrides the training loss, but not the parts that it inherits, trains with the loss.
    """
    kinds = type(task).__mro__
    names = ("loss", "training_loss", "training_criterion")
    place = {name: next(i for i, k in enumerate(kinds) if name in vars(k)) for name in names}
    trained = place["training_loss"] if kinds[place["training_loss"]] is not Task else place["loss"]
    return task.training_criterion(recipe) if place["training_criterion"] <= trained else None


@torch.no_grad()
def evaluate(
    task: Task, model: nn.Module, batches: Iterable[Any], *, precision: str = "fp32", device: torch.device
) -> dict[str, float]:
    """Compute loss and metrics in evaluation mode; afterwards all modules have their previous modes.

    Args:
        task: The task with the loss and the metrics.
        model: The model.
        batches: The batches of the evaluated part.
        precision: ``bf16`` evaluates under autocast.
        device: The device of the model.

    Returns:
        ``loss`` and all metrics by name. The loss is the mean over examples, or over the count of its ``Loss``.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    counts = [(metric, metric.begin()) for metric in task.metrics]
    sizes, totals, divisors = Batches(task.cut), [], []
    try:
        for batch in batches:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                loss, prediction = task.judged(model, batch)
            total, divisor = total_of(loss, sizes, batch)
            totals.append(total.double())
            divisors.append(float(divisor))
            for _, count in counts:
                count.add(prediction, batch)
    finally:
        for module, training in modes:
            module.training = training
    mean = float(torch.stack(totals).sum()) / (sum(divisors) or 1) if totals else float("nan")
    return {"loss": mean} | {metric.name: count.value() for metric, count in counts}


def total_of(loss: Tensor | Loss, sizes: Batches, batch: Any) -> tuple[Tensor, float]:
    """A loss as a sum and its divisor; of a mean, the product with the number of examples and this number."""
    if isinstance(loss, Loss):
        return torch.as_tensor(loss.total), float(loss.count)
    if loss.ndim:
        return loss.sum(), float(len(loss))
    size = sizes.known_size(batch) or 1
    return loss * size, float(size)


def headline(metrics: Sequence[Metric], figures: Mapping[str, float | None]) -> str:
    """The first metric, or the loss of a task without metrics, as text for a display.

    Example:
        >>> headline([Metric(name="accuracy", update=len, unit="%", scale=100)], {"accuracy": 0.9312})
        'accuracy 93.12 %'
    """
    if not metrics:
        value = figures.get("loss")
        return "loss unknown" if value is None else f"loss {value:.4g}"
    metric, value = metrics[0], figures.get(metrics[0].name)
    if value is None:
        return f"no {metric.name}"
    shown = f"{metric.scale * value:.2f}" if metric.scale != 1 else f"{value:.4g}"
    return f"{metric.name} {shown} {metric.unit}".rstrip()


def better(task: Task, figures: Mapping[str, float], than: Mapping[str, float] | None) -> bool:
    """Whether the headline metric is better than in ``than``; NaN is worse than every number."""
    name, sign = (task.metrics[0].name, 1 if task.metrics[0].higher else -1) if task.metrics else ("loss", -1)
    value = figures[name]
    if value != value:
        return False
    return than is None or than[name] != than[name] or sign * value > sign * than[name]


def fingerprint(model: nn.Module) -> str:
    """The SHA-256 of names, shapes, dtypes and bits of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
