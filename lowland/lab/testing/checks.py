"""The checks of a task, one function each; the message of a failed check says what is wrong and how to correct it.

``check_task`` runs them all. They load one batch of each part and train one step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lowland.core.loss import terms
from lowland.lab import names
from lowland.lab.contract import duplicates, recipe_of
from lowland.lab.data.loader import Loader
from lowland.lab.testing.trial import Trial
from lowland.lab.training.trainer import Trainer
from lowland.methods import make

SEEDS = 8  # the number of seeds that must not all give the same augmentation
CLOSE = 1e-4  # a relative difference that rounding in fp32 can cause


def check_parts_are_there(trial: Trial) -> None:
    """The parts train and test exist, and no part is empty."""
    missing = [name for name in ("train", "test") if name not in trial.parts]
    _promise(not missing, f"datasets() has no part {' and no part '.join(missing)}; it has {', '.join(trial.parts)}")


def check_batches_repeat(trial: Trial) -> None:
    """The same positions and generator give the same batch; different generators give different augmentations."""
    for part in trial.parts:
        plain = trial.batch(part)
        _promise(
            _same(trial.batch(part), plain),
            f"{part} gives a different batch each time without a generator; draw no random numbers if generator is "
            "None",
        )
        augmented = [trial.batch(part, seed) for seed in range(SEEDS)]
        _promise(
            all(_same(trial.batch(part, seed), batch) for seed, batch in enumerate(augmented)),
            f"{part} gives different batches for equal generators; draw random numbers from the generator only",
        )
        _promise(
            _same(augmented[0], plain) or not all(_same(batch, augmented[0]) for batch in augmented),
            f"{part} has the same augmentation for all generators; draw from the argument generator of batch",
        )


def check_model_is_fresh(trial: Trial) -> None:
    """Every call makes a new model: equal weights for equal seeds, and different weights for different seeds."""
    one, again, other = trial.net(0), trial.net(0), trial.net(1)
    _promise(isinstance(one, nn.Module), f"model({trial.model!r}) must make an nn.Module, but made {one!r}")
    shared = {id(p) for p in one.parameters()} & {id(p) for p in again.parameters()}
    _promise(not shared, f"model({trial.model!r}) returns the same parameters twice; make a new module")
    _promise(
        _same(one.state_dict(), again.state_dict()),
        f"model({trial.model!r}) has different weights for the same seed; draw them from torch's global random numbers",
    )
    _promise(
        not _same(one.state_dict(), other.state_dict()),
        f"model({trial.model!r}) has the same weights for every seed; draw them from torch's global random numbers",
    )


def check_loss_is_a_loss(trial: Trial) -> None:
    """``loss``, ``training_loss`` and ``training_criterion`` have an allowed shape, are finite, and have a gradient."""
    batch = trial.batch("train", 0)
    for name, loss in trial.losses().items():
        mean = loss(trial.net().train(), batch).mean
        _promise(math.isfinite(float(mean.detach())), f"{name} of the fresh model is {float(mean.detach())}")
        _promise(mean.requires_grad, f"{name} has no gradient; compute it from model(…) without detach")


def check_criterion_agrees(trial: Trial) -> None:
    """``training_criterion`` gives the same loss as ``training_loss``."""
    losses, batch = trial.losses(), trial.batch("test")
    if "training_criterion" not in losses:
        return
    one, other = (losses[k](trial.net().eval(), batch) for k in ("training_loss", "training_criterion"))
    _promise(
        _close(float(one.mean.detach()), float(other.mean.detach())),
        f"training_loss of a batch is {float(one.mean.detach()):.6g}, but {float(other.mean.detach()):.6g} by "
        "training_criterion; let both compute the same loss",
    )


def check_losses_of_parts_combine(trial: Trial) -> None:
    """The losses of a batch's parts combine to the loss of the batch."""
    if trial.uncut() is not None:
        return
    model, batch = trial.net().eval(), trial.batch("test")
    for name, loss in trial.losses().items():
        parts = [loss(model, part) for part in trial.batches.split(batch, trial.half())]
        counts = [float(part.count or 0) for part in parts]
        sums = [float(part.mean.detach()) * count for part, count in zip(parts, counts, strict=True)]
        expected, combined = float(loss(model, batch).mean.detach()), sum(sums) / (sum(counts) or 1)
        _promise(
            _close(combined, expected),
            f"{name} of a batch is {expected:.6g}, but {combined:.6g} if combined from its parts; compute each "
            "example's loss from that example only, and let Loss(total, count) count the terms of total",
        )


def check_a_mean_is_no_sum(trial: Trial) -> None:
    """A loss of one number is a mean over the examples: it does not double when every example comes twice."""
    if trial.uncut() is None:
        return
    for name, once, doubled in _compared(trial, lambda size: torch.arange(size).repeat(2)):
        _promise(
            once == 0 or not _close(doubled, 2 * once),
            f"{name} of a batch is {once:.6g}, but {doubled:.6g} if every example comes twice, so it is a sum, and the "
            "training would depend on the number of ranks; return one loss for each example, or their mean",
        )


def check_order_is_free(trial: Trial) -> None:
    """In evaluation mode the losses are independent of the order of the examples."""
    for name, before, after in _compared(trial, lambda size: torch.arange(size).flip(0)):
        _promise(
            _close(after, before),
            f"{name} of a batch is {before:.6g}, but {after:.6g} with its examples in reverse order; let it draw no "
            "random numbers and not depend on the position of an example",
        )


def _compared(trial: Trial, order: Callable[[int], Tensor]) -> Iterator[tuple[str, float, float]]:
    """The name of each loss, its mean over a batch, and over the examples of the batch at the positions ``order(B)``.

    The model is in evaluation mode. There are none if the batch cannot be cut.
    """
    model, batch = trial.net().eval(), trial.batch("test")
    size = trial.batches.known_size(batch)
    if size is None:
        return
    other = trial.batches.take(batch, order(size))
    for name, loss in trial.losses().items():
        yield name, float(loss(model, batch).mean.detach()), float(loss(model, other).mean.detach())


def check_metrics_add_up(trial: Trial) -> None:
    """A metric over all examples at once is the metric over two halves."""
    task, model, batch = trial.task, trial.net().eval(), trial.batch("test")
    doubles = duplicates(task)
    _promise(not doubles, f"metrics has two of the name {', '.join(doubles)}; give them different names")
    if trial.batches.known_size(batch) is None:
        return
    halves = trial.batches.split(batch, trial.half())
    for metric in task.metrics:
        with torch.no_grad():
            at_once = metric.over([(task.judged(model, batch)[1], batch)])
            in_halves = metric.over([(task.judged(model, half)[1], half) for half in halves])
        _promise(
            _close(in_halves, at_once),
            f"metric {metric.name} is {at_once:.6g} at once, but {in_halves:.6g} in halves; let update return sums, "
            "and let compute divide them",
        )


def check_judged_agrees(trial: Trial) -> None:
    """``judged`` returns the same loss as ``loss`` and the same prediction as ``predict``."""
    task, model, batch = trial.task, trial.net().eval(), trial.batch("test")
    loss, prediction = task.judged(model, batch)
    judged = float(terms(loss, trial.batches.known_size(batch)).mean.detach())
    expected = float(trial.losses()["loss"](model, batch).mean.detach())
    _promise(_close(judged, expected), f"judged returns the loss {judged:.6g}, but loss returns {expected:.6g}")
    if task.metrics:
        _promise(
            _same(prediction, task.predict(model, batch), CLOSE),
            "judged returns another prediction than predict; override both alike",
        )


def check_task_is_a_value(trial: Trial) -> None:
    """A task can be compared and hashed, cannot be modified, and can be made from its text."""
    task = trial.task
    _promise(task == copy.deepcopy(task), "a copy is not equal: is it a frozen dataclass?")
    _promise(hash(task) == hash(copy.deepcopy(task)), "equal tasks have different hashes")
    _promise(type(task.seeded(0)) is type(task), "seeded(0) returns a task of another class")
    try:
        task.metrics = ()  # type: ignore[misc]
    except AttributeError:
        pass
    else:
        del task.metrics
        raise AssertionError("its fields can be assigned: write @dataclass(frozen=True, kw_only=True)")
    text = names.spell(task)
    _promise(names.make(text) == task, f"its text {text!r} makes another task; use numbers, texts and tuples as fields")


def check_it_trains(trial: Trial) -> None:
    """A step of plain training and a step of SAM with the task's recipe leave finite weights."""
    loader = Loader(trial.parts, recipe_of(trial.task, trial.model).batch_size, 0, drop_last=True, cut=trial.task.cut)
    for method in ("plain", "sam"):
        trainer = Trainer(trial.config(method), make(method))
        loss = float(trainer.step(next(iter(loader.batches(0))), 0.0))
        _promise(math.isfinite(loss), f"the first loss of {method} is {loss}")
        infinite = [name for name, p in trainer.model.named_parameters() if not bool(p.isfinite().all())]
        _promise(not infinite, f"a step of {method} makes {', '.join(infinite)} infinite or NaN")


CHECKS: tuple[Callable[[Trial], None], ...] = (
    check_parts_are_there,
    check_batches_repeat,
    check_model_is_fresh,
    check_loss_is_a_loss,
    check_criterion_agrees,
    check_losses_of_parts_combine,
    check_a_mean_is_no_sum,
    check_order_is_free,
    check_metrics_add_up,
    check_judged_agrees,
    check_task_is_a_value,
    check_it_trains,
)


def _same(a: Any, b: Any, close: float = 0.0) -> bool:
    """Whether two structures contain the same tensors and values, up to a relative difference."""
    (left, one), (right, other) = pytree.tree_flatten(a), pytree.tree_flatten(b)
    return one == other and all(_alike(x, y, close) for x, y in zip(left, right, strict=True))


def _alike(a: Any, b: Any, close: float) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return bool(a == b)
    same = a.shape == b.shape and a.dtype == b.dtype
    return same and torch.allclose(a.detach(), b.detach(), rtol=close, atol=close, equal_nan=True)


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=CLOSE, abs_tol=CLOSE**2) or (math.isnan(a) and math.isnan(b))


def _promise(kept: bool, message: str) -> None:
    if not kept:
        raise AssertionError(message)
