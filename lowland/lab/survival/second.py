"""A second task, on which a trained model is trained further, to measure what it forgets of the first one.

Reference: Goodfellow, Mirza, Xiao, Courville, Bengio, "An Empirical Investigation of Catastrophic Forgetting in
Gradient-Based Neural Networks", arXiv:1312.6211, whose second tasks include images with permuted pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lowland.core.errors import ArgumentError
from lowland.lab import fingerprint, names
from lowland.lab.config import RunConfig
from lowland.lab.data.loader import Loader
from lowland.lab.data.streams import stream
from lowland.lab.data.wrapped import dataset
from lowland.lab.survival.settings import Survival
from lowland.lab.task import Task
from lowland.lab.training.prepare import loader_of, parts_of
from lowland.lab.training.trained import Trained
from lowland.lab.training.trainer import Trainer, settings
from lowland.methods import make

PERMUTED = "permuted"


class Permuted:
    """A part of the data whose images have their pixels in another order, the same for all images and channels.

    Args:
        data: The part, as a :class:`lowland.lab.task.Dataset`.
        seed: The seed of the order.

    Raises:
        ArgumentError: The batches do not begin with images.
    """

    def __init__(self, data: Any, seed: int) -> None:
        self._data = data
        inputs = self._images(data.batch(torch.zeros(1, dtype=torch.int64), None))
        height, width = inputs.shape[-2:]
        self.order = torch.randperm(height * width, generator=stream(seed, "pixels"))

    def __len__(self) -> int:
        return len(self._data)

    def batch(self, index: Tensor, generator: torch.Generator | None) -> Any:
        """The batch at these positions, with permuted pixels; an augmentation comes before the permutation."""
        batch = self._data.batch(index, generator)
        inputs = self._images(batch)
        mixed = inputs.flatten(2)[..., self.order.to(inputs.device)].reshape(inputs.shape)
        return type(batch)((mixed, *batch[1:]))

    @staticmethod
    def _images(batch: Any) -> Tensor:
        inputs = batch[0] if type(batch) in (tuple, list) and batch else None
        if not isinstance(inputs, Tensor) or inputs.ndim != 4 or not inputs.is_floating_point():
            raise ArgumentError(
                "forget must be a task, because permuted needs batches that begin with images (B, C, H, W), and the "
                "run's task has others; write forget=TASK with a task of the same inputs"
            )
        return inputs


@dataclass(frozen=True)
class Second:
    """A second task with its data and its recipe.

    Args:
        text: The task as text.
        config: The configuration of its training; its model is a copy of the trained one.
        loader: The data.
        steps: The steps of its training.
        seed: The seed of the order of the pixels; None for a task whose pixels are not permuted.
    """

    text: str
    config: RunConfig
    loader: Loader
    steps: int
    seed: int | None

    @property
    def task(self) -> Task:
        """The task for the seed of the run."""
        return self.config.task.seeded(self.config.seed)

    def settings(self) -> dict[str, Any]:
        """What a measured value depends on; the hash of code that is not lowland's is one of them."""
        recipe, code = self.config.recipe, fingerprint.of(self.config.task, "task")
        optional = {"seed": self.seed, "source": code}
        return {
            "second": self.text,
            "steps": self.steps,
            "optimizer": recipe.optimizer,
            "lr": recipe.lr,
            "batch_size": recipe.batch_size,
            **{name: value for name, value in optional.items() if value is not None},
        }


def second_of(trained: Trained, wanted: Survival) -> Second:
    """Make the second task of a run.

    Its order of examples, and its label noise if it has any, depend on the seed of the run, so that contestants with
    equal seeds are trained alike.

    Args:
        trained: The run.
        wanted: The settings; ``forget`` is not None.

    Raises:
        ArgumentError: The second task does not fit the model, or the pixels cannot be permuted.
        UnknownNameError: There is no such task.
    """
    text = wanted.forget or ""
    permuted = text == PERMUTED
    task = trained.config.task if permuted else names.make(text)
    recipe = task.recipe(trained.record.model).replace(ema=None)
    if wanted.forget_lr is not None:
        recipe = recipe.replace(lr=wanted.forget_lr)
    config = replace(trained.config, task=task, recipe=recipe, model=lambda: copy.deepcopy(trained.model))
    if permuted:
        loader = _permuted(config, wanted.seed)
    else:
        _check_alike(trained, task, parts_of(config))
        text, loader = names.spell(task), loader_of(config)
    return Second(text, config, loader, wanted.forget_steps, wanted.seed if permuted else None)


def _permuted(config: RunConfig, seed: int) -> Loader:
    """The data of the run's own task with permuted pixels, in full batches."""
    return Loader(
        {name: Permuted(dataset(name, part), seed) for name, part in parts_of(config).items()},
        config.recipe.batch_size,
        config.seed,
        validation=config.validation,
        device=config.on(),
        channels_last=config.recipe.channels_last,
        drop_last=True,
        cut=config.task.cut,
    )


def _check_alike(trained: Trained, task: Task, parts: Mapping[str, Any]) -> None:
    """Refuse a second task whose batches have other shapes or types, or that has another number of classes."""
    first = torch.zeros(1, dtype=torch.int64)
    both = trained.loader.parts["test"], dataset("test", parts["test"])
    own, other = (_kinds(each.batch(first, None)) for each in both)
    classes = [getattr(each, "classes", None) for each in (trained.task, task)]
    if own != other or classes[0] != classes[1]:
        raise ArgumentError(
            f"forget must be a task with the inputs and classes of {names.spell(trained.config.task)}, but "
            f"{names.spell(task)} has {_said(other, classes[1])} instead of {_said(own, classes[0])}; take one that "
            "fits the model, or permuted"
        )


def _kinds(batch: Any) -> list[tuple[tuple[int, ...], torch.dtype]]:
    return [(tuple(leaf.shape[1:]), leaf.dtype) for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]


def _said(kinds: Sequence[tuple[tuple[int, ...], torch.dtype]], classes: int | None) -> str:
    return f"inputs {kinds[0][0] if kinds else '?'}" + ("" if classes is None else f" and {classes} classes")


def trained_further(second: Second) -> nn.Module:
    """A copy of the trained model after its plain training on the second task, in evaluation mode.

    All parameters and running statistics change as in an ordinary training with the task's recipe, whose schedule has
    its full course within these steps. Global random numbers are restored.
    """
    device = second.config.on()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), settings(second.config):
        trainer = Trainer(second.config, make("plain"))
        batches = chain.from_iterable(second.loader.batches(epoch) for epoch in count())
        for step, batch in enumerate(islice(batches, second.steps)):
            trainer.step(batch, step / second.steps)
        return trainer.unwrapped().eval()
