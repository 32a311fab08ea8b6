"""Everything that moves during a run: model, optimizer, engine; and the state they are saved in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, count, islice
from typing import Any

import torch
from torch import Tensor, nn

from lowland.engine import Engine
from lowland.lab import models
from lowland.lab.config import RunConfig
from lowland.lab.evaluate import cross_entropy
from lowland.lab.loader import Loader
from lowland.lab.memory import meter
from lowland.lab.recipes import lr_at, make_optimizer
from lowland.lab.tasks import Task
from lowland.lab.tasks.streams import derived
from lowland.method import Method

REHEARSED = 6  # steps: a cycle of LookSAM(k=5) and the refresh after it


class Trainer:
    """One model in training. Two trainers of the same configuration take the same steps, bit for bit.

    Args:
        config: The run.
        method: Its method, complete.
        task: Its task.

    Attributes:
        model: In training mode.
        optimizer: The base optimizer.
        engine: The method at work.

    Raises:
        ParameterError: The method cannot work on this model.
        UsageError: The method cannot work with this optimizer.
    """

    def __init__(self, config: RunConfig, method: Method, task: Task) -> None:
        recipe, self.device = config.recipe, config.on()
        self.recipe = recipe
        model = models.build(config.model, shape=task.shape, classes=task.classes, seed=config.seed)
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.model: nn.Module = model.to(device=self.device, memory_format=layout).train()  # type: ignore[call-overload]
        self.optimizer = make_optimizer(recipe, self.model)
        loss_fn = cross_entropy(precision=recipe.precision, label_smoothing=recipe.label_smoothing)
        self.engine = Engine(method, self.model, self.optimizer, loss_fn, seed=config.seed)
        torch.manual_seed(derived(config.seed, "training"))  # what dropout draws from

    def step(self, batch: Any, progress: float) -> Tensor:
        """One step at the learning rate that belongs to this progress; returns the loss, shape ()."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(self.recipe, progress)
        loss = self.engine.backward(batch)
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """All that decides the steps to come, the random numbers included."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "engine": self.engine.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.model.load_state_dict(state_dict["model"])
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.engine.load_state_dict(state_dict["engine"])
        torch.set_rng_state(state_dict["rng"])
        if state_dict["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state_dict["cuda_rng"], self.device)


def rehearse(make: Callable[[], Trainer], loader: Loader, steps: int = REHEARSED) -> int:
    """The peak memory of a run, from its first steps taken once before they count.

    A trainer of its own takes them and is thrown away, so the measurement slows and changes nothing. Model,
    optimizer state, memory of the method, batches and activations count; the data set does not.

    Returns:
        Bytes.
    """
    used = [loader.device] if loader.device.type == "cuda" else []
    with torch.random.fork_rng(devices=used), meter(loader.device) as measured:
        trainer = make()
        batches = chain.from_iterable(loader.batches(epoch) for epoch in count())
        for batch in islice(batches, steps):
            trainer.step(batch, 0.0)
        del trainer, batches
    return measured.peak


@contextmanager
def settings(config: RunConfig) -> Iterator[None]:
    """The number of threads, and on a GPU convolutions that give the same bits every time."""
    threads, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    torch.set_num_threads(config.threads or threads)
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, benchmark
