"""The model, the optimizer and the engine of a run, their steps, and their state for checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lowland.core.errors import ONE_EXAMPLE, ArgumentError, BatchError
from lowland.engine import Engine
from lowland.executors.auto import Auto
from lowland.lab import models
from lowland.lab.config import RunConfig
from lowland.lab.data.streams import derived
from lowland.lab.recipe import Recipe, lr_at, make_optimizer
from lowland.lab.training.average import Average
from lowland.lab.training.checkpoint import ALONE
from lowland.lab.training.determinism import deterministic
from lowland.lab.training.evaluate import training_loss
from lowland.lab.training.snapshot import Snapshot
from lowland.lab.training.wrapped import Unwrapped, wrap
from lowland.methods.base import Method
from lowland.parallel import World


class Trainer:
    """Trains one model. Two trainers of the same configuration take bit-identical steps.

    Args:
        config: The run.
        method: The method, with all fields filled.
        world: The ranks that train together; by default this process alone.

    Attributes:
        model: The model as this rank trains it, wrapped or sharded, in training mode.
        unwrapped: A function that returns the unwrapped model with all its weights.
        optimizer: The base optimizer.
        engine: The engine of the method.
        average: The moving average of the weights; None without one.
        snapshot: The state of model, optimizer and engine for checkpoints.

    Raises:
        ParameterError: The method cannot work on this model.
        UsageError: The method cannot work with this optimizer.
    """

    def __init__(self, config: RunConfig, method: Method, world: World = ALONE) -> None:
        recipe, self.device, self.world = config.recipe, config.on(), world
        self.recipe, self._seed, task = recipe, config.seed, config.task.seeded(config.seed)
        sharded = config.shard and world.along("data") is not None
        # fully_shard refuses parameters that are not contiguous
        layout = torch.channels_last if recipe.channels_last and not sharded else torch.contiguous_format

        def build() -> nn.Module:
            model: nn.Module = fresh_model(config).to(device=self.device, memory_format=layout)  # type: ignore[call-overload]
            return model.train()

        self.model = wrap(build(), world, shard=config.shard)
        self.unwrapped = Unwrapped(self.model, build)
        self.optimizer = make_optimizer(recipe, task.param_groups(self.model, recipe))
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self.engine = Engine(
            method,
            self.model,
            self.optimizer,
            training_loss(task, recipe, self.device),
            mesh=world.along("probe", "replicate"),
            executor="auto" if config.executor == "auto" else None,
            micro_batch=_micro_batch(recipe, world) if recipe.accumulate > 1 else None,
            cut=task.cut,
            seed=config.seed,
        )
        self.average = None if recipe.ema is None else Average(self.model, recipe.ema)
        self.snapshot = Snapshot(self.model, self.optimizer, self.engine, self.average)
        torch.manual_seed(self._dropout_seed(0))

    def step(self, batch: Any, progress: float) -> Tensor:
        """Take one step.

        Args:
            batch: This rank's part of the batch.
            progress: The completed fraction of the training, in [0, 1].

        Returns:
            The loss, shape ``()``.
        """
        self.engine.progress = progress
        rate = lr_at(self.recipe, progress)
        for group, own in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate if own == self.recipe.lr else own * (rate / self.recipe.lr)
        loss = self._backward(batch)
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.engine.step)
        return loss

    def _backward(self, batch: Any) -> Tensor:
        try:
            return self.engine.backward(batch)
        except ValueError as error:
            if ONE_EXAMPLE not in str(error):
                raise
            raise BatchError(
                "every pass must have two examples or more, because the model has batch normalization, but one had a "
                f"single example ({error}); take a larger batch_size, a smaller accumulate, or fewer parts of a batch "
                "in the method"
            ) from error

    def chosen(self) -> dict[str, Any]:
        """The executor that ``executor="auto"`` has chosen, for the end line; "" where it had nothing to choose yet."""
        executor = self.engine.executor.inner
        return {"executor": executor.choice} if isinstance(executor, Auto) else {}

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """Yield the unwrapped model for evaluation, with its current weights or with their moving average."""
        with nullcontext() if self.average is None else self.average.in_place():
            yield self.unwrapped()

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of model, optimizer, method and average by name; sharded tensors are DTensors."""
        return self.snapshot.tensors()

    def state(self) -> dict[str, Any]:
        """The state of all ranks besides :meth:`tensors` that later steps depend on. All ranks must call this."""
        engine = self.engine.state_dict()
        del engine["vectors"]
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        # On the CPU, because the rank that unpickles a tensor may not have this rank's device.
        values = pytree.tree_map(lambda t: t.cpu() if isinstance(t, Tensor) else t, engine.pop("values"))
        own = {"share": self.world.batch_part[0], "values": values, "rng": torch.get_rng_state(), "cuda": cuda}
        by_part = {each["share"]: each for each in reversed(self.world.gather(own))}
        return {
            "engine": engine,
            "optimizer": [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups],
            "optimizer_values": self.snapshot.values(),
            "shares": [by_part[index] for index in sorted(by_part)],
        }

    def load(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Load :meth:`state` and :meth:`tensors`, possibly from another number of ranks."""
        # Checkpoints of 0.1.0 have only the tensors of the optimizer.
        vectors = self.snapshot.load(tensors, state.get("optimizer_values", {}))
        for group, saved in zip(self.optimizer.param_groups, state["optimizer"], strict=True):
            group.update(saved)
        index, count = self.world.batch_part
        parts = [each["values"] for each in state["shares"]]
        values = parts[index] if len(parts) == count else self.engine.method.reshard(parts, index, count)
        saved = {
            **state["engine"],
            "vectors": vectors,
            "values": values,
            "share": self.engine.work.replicas.ranks_and_sizes,
        }
        self.engine.load_state_dict(saved)
        if index < len(state["shares"]):
            torch.set_rng_state(state["shares"][index]["rng"])
            if state["shares"][index]["cuda"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["shares"][index]["cuda"], self.device)
        else:  # the checkpoint has no random state for this part of the batch
            torch.manual_seed(self._dropout_seed(self.engine.step))

    def _dropout_seed(self, step: int) -> int:
        """The seed of dropout: equal on ranks with the same part of a batch, different for different parts."""
        place = ("training",) if self.world.batch_part[0] == step == 0 else ("training", *self.world.batch_part, step)
        return derived(self._seed, *place)


def fresh_model(config: RunConfig) -> nn.Module:
    """Make the run's model with the initial weights of its seed, or those that the task loads.

    Raises:
        ArgumentError: The function that makes the model does not return a module.
    """
    maker, _ = config.maker()
    model = models.seeded(maker, config.seed)
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model {config.model_text} must make an nn.Module, but made {model!r}; return the module")
    return config.task.seeded(config.seed).initialize(model)


def _micro_batch(recipe: Recipe, world: World) -> int:
    """The number of examples in a micro-batch of this rank."""
    return max(1, math.ceil(recipe.batch_size / world.batch_part[1] / recipe.accumulate))


@contextmanager
def settings(config: RunConfig) -> Iterator[None]:
    """Set the run's number of threads, and deterministic kernels; restore both at the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads or threads)
    try:
        with deterministic(config.on()):
            yield
    finally:
        torch.set_num_threads(threads)
