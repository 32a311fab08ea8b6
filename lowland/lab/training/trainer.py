"""Everything that moves during a run: model, optimizer, engine; and the state they are saved in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain, count, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lowland.core.errors import ArgumentError
from lowland.engine import Engine
from lowland.lab import models
from lowland.lab.config import RunConfig
from lowland.lab.data.loader import Loader
from lowland.lab.data.streams import derived
from lowland.lab.recipe import Recipe, lr_at, make_optimizer
from lowland.lab.training.average import Average
from lowland.lab.training.checkpoint import ALONE
from lowland.lab.training.evaluate import training_loss
from lowland.lab.training.memory import meter
from lowland.lab.training.snapshot import Snapshot
from lowland.lab.training.wrapped import Unwrapped, wrap
from lowland.methods.base import Method
from lowland.parallel import World

REHEARSED = 6  # steps: a cycle of LookSAM(k=5) and the refresh after it


class Trainer:
    """One model in training. Two trainers of the same configuration take the same steps, bit for bit.

    Args:
        config: The run.
        method: Its method, complete.
        world: The ranks that train together; by default this process alone.

    Attributes:
        model: As this rank trains it, in training mode.
        unwrapped: Gives the unwrapped model with all its weights.
        optimizer: The base optimizer.
        engine: The method at work.
        snapshot: What is saved of these three, by name.

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
            placed: nn.Module = fresh_model(config).to(device=self.device, memory_format=layout)  # type: ignore[call-overload]
            return placed.train()

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
            micro_batch=_part(recipe, world) if recipe.accumulate > 1 else None,
            cut=task.cut,
            seed=config.seed,
        )
        self.average = None if recipe.ema is None else Average(self.model, recipe.ema)
        self.snapshot = Snapshot(self.model, self.optimizer, self.engine, self.average)
        torch.manual_seed(self._dropout_seed(0))

    def step(self, batch: Any, progress: float) -> Tensor:
        """One step when a fraction ``progress`` of the training is done, in [0, 1]; returns the loss, shape ()."""
        self.engine.progress = progress
        rate = lr_at(self.recipe, progress)
        for group, own in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate if own == self.recipe.lr else own * (rate / self.recipe.lr)
        loss = self.engine.backward(batch)
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.engine.step)
        return loss

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """The unwrapped model that is judged: at the present weights, or at their average."""
        with nullcontext() if self.average is None else self.average.in_place():
            yield self.unwrapped()

    def tensors(self) -> dict[str, Tensor]:
        """Model, optimizer state, the method's vectors and the average by name; DTensors where they are sharded."""
        return self.snapshot.tensors()

    def state(self) -> dict[str, Any]:
        """All else that decides the steps to come, of all ranks; all of them call this."""
        engine = self.engine.state_dict()
        del engine["vectors"]
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        # On the host: where another rank unpickles it, there may be no such device.
        values = pytree.tree_map(lambda t: t.cpu() if isinstance(t, Tensor) else t, engine.pop("values"))
        own = {"share": self.world.share[0], "values": values, "rng": torch.get_rng_state(), "cuda": cuda}
        by_share = {each["share"]: each for each in reversed(self.world.gather(own))}
        return {
            "engine": engine,
            "optimizer": [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups],
            "optimizer_values": self.snapshot.values(),
            "shares": [by_share[number] for number in sorted(by_share)],
        }

    def load(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go on where :meth:`state` and :meth:`tensors` were taken, maybe on another number of ranks."""
        # Checkpoints of 0.1.0 have the optimizer's tensors alone.
        vectors = self.snapshot.load(tensors, state.get("optimizer_values", {}))
        for group, saved in zip(self.optimizer.param_groups, state["optimizer"], strict=True):
            group.update(saved)
        number, count = self.world.share
        shares = [each["values"] for each in state["shares"]]
        values = shares[number] if len(shares) == count else self.engine.method.reshard(shares, number, count)
        saved = {**state["engine"], "vectors": vectors, "values": values, "share": self.engine.work.replicas.share}
        self.engine.load_state_dict(saved)
        if number < len(state["shares"]):
            torch.set_rng_state(state["shares"][number]["rng"])
            if state["shares"][number]["cuda"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["shares"][number]["cuda"], self.device)
        else:  # the checkpoint has no random numbers for this share of the batch
            torch.manual_seed(self._dropout_seed(self.engine.step))

    def _dropout_seed(self, step: int) -> int:
        """Ranks that see other examples drop other units; those that see the same drop the same."""
        place = ("training",) if self.world.share[0] == step == 0 else ("training", *self.world.share, step)
        return derived(self._seed, *place)


def fresh_model(config: RunConfig) -> nn.Module:
    """The run's model with fresh weights, which its seed decides."""
    maker, _ = config.maker()
    made = models.seeded(maker, config.seed)
    if not isinstance(made, nn.Module):
        raise ArgumentError(f"model {config.model_text} must make an nn.Module, but made {made!r}; return the module")
    return made


def _part(recipe: Recipe, world: World) -> int:
    """Examples in a part of this rank's share of a batch."""
    return max(1, math.ceil(recipe.batch_size / world.share[1] / recipe.accumulate))


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
