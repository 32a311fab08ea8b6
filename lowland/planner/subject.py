"""The training that is planned: its model, optimizers, loss function and batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lowland.core.batch import Batches, Parts
from lowland.core.errors import ArgumentError, BatchError, UsageError
from lowland.core.loss import LossFn
from lowland.engine import Engine, doors
from lowland.engine.lookahead import needs_closure
from lowland.executors.base import Executor
from lowland.executors.mesh.messages import BUCKET
from lowland.methods.base import Method
from lowland.planner.costs import STEPS
from lowland.planner.layout import Layout

SLOW = 1e-8  # what learning rates are multiplied by, so that measured steps leave the weights where they are


@dataclass(frozen=True)
class Subject:
    """The training that is planned. Its model and optimizers are copied, never changed.

    Args:
        model: The model, not wrapped for several ranks.
        optimizers: Its optimizers.
        loss_fn: The loss function of the engine.
        batch: A batch of one step, on the model's device, as all ranks together take it.
        batches: What cuts it.
        total: The steps of the training; if they are not known, :data:`lowland.planner.costs.STEPS`.
        rng: How passes draw random numbers, as the engine's ``rng``.
        notes: What of the training is not planned, in sentences.
    """

    model: nn.Module
    optimizers: Sequence[Optimizer]
    loss_fn: LossFn
    batch: Any
    batches: Batches
    total: int = STEPS
    rng: str = "free"
    notes: Sequence[str] = ()

    @classmethod
    def of(cls, engine: Engine, batch: Any) -> Subject:
        """The training of an engine.

        Args:
            engine: The engine; neither it nor its model changes.
            batch: A batch of one step.

        Raises:
            ArgumentError: ``engine`` is no engine.
            BatchError: The batch is a ``Parts``.
            UsageError: The engine has no loss function or several modules, its model is wrapped or sharded, or an
                optimizer steps by a closure.
        """
        if not isinstance(engine, Engine):
            raise ArgumentError(f"engine must be a lowland.Engine, but is a {type(engine).__name__}; make one first")
        if isinstance(batch, Parts):
            raise BatchError(
                "a plan measures passes on smaller parts of the batch, but Parts may be padded differently; pass one "
                "batch with as many examples"
            )
        if engine.loss_fn is None:
            raise UsageError("a plan runs the model, but the engine has loss_fn=None; pass Engine(…, loss_fn=…)")
        if doors.has_several(engine.loss_fn):
            raise UsageError(
                "a plan copies the model, but this engine has several modules, which its loss function gets as they "
                "are; pass an engine with one module that holds them, such as nn.ModuleList([encoder, head])"
            )
        for optimizer in engine.optimizers:
            if needs_closure(optimizer):
                raise UsageError(
                    f"a plan steps the optimizers, but {type(optimizer).__name__}.step needs a closure; plan with "
                    "another optimizer, such as SGD"
                )
        replicas = engine.work.replicas
        if replicas.ddps or replicas.sharded:
            raise UsageError(
                "a plan divides the model over ranks itself, but this model is wrapped or sharded; pass an engine "
                "with the bare model"
            )
        total = engine.training.total or STEPS
        most = engine.work.micro_batch
        notes = (
            []
            if most is None
            else [f"The training's own micro-batches of at most {most} examples are not planned; layouts name theirs."]
        )
        rng = "free" if engine.work.rng is None else "shared"
        return cls(engine.model, engine.optimizers, engine.loss_fn, batch, engine.batches, total, rng, notes)

    @property
    def size(self) -> int | None:
        """The number of examples in the batch; None if it cannot be cut."""
        return self.batches.known_size(self.batch)

    @property
    def device(self) -> torch.device:
        """The device of the first parameter."""
        return next(self.model.parameters()).device

    @property
    def float32(self) -> bool:
        """Whether all trainable weights are float32."""
        return all(p.dtype == torch.float32 for p in self.model.parameters() if p.requires_grad)

    @property
    def parameters(self) -> int:
        """The bytes of all trainable parameters."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)

    def part(self, examples: int) -> Any:
        """A batch of the first ``examples`` examples.

        Raises:
            ArgumentError: The batch has fewer examples, or cannot be cut.
        """
        size = self.size
        if examples == size:
            return self.batch
        if size is None or not 1 <= examples <= size:
            raise ArgumentError(
                f"examples must be between 1 and the {size} of the batch, but is {examples}; pass a batch that "
                "can be cut and has as many"
            )
        return self.batches.take(self.batch, slice(0, examples))

    def copies(self) -> tuple[nn.Module, list[Optimizer]]:
        """A copy of the model, and of its optimizers with learning rates of nearly zero."""
        try:
            known: dict[int, Any] = {}
            model, optimizers = copy.deepcopy((self.model, list(self.optimizers)), known)
            for optimizer, copied in zip(self.optimizers, optimizers, strict=True):
                # torch copies the state, the groups and the defaults, but no attributes of a user's own class.
                own = {name: value for name, value in vars(optimizer).items() if name not in vars(copied)}
                vars(copied).update(copy.deepcopy(own, known))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError) as error:
            raise UsageError(
                f"a plan copies the model and its optimizers, but they cannot be copied ({error}); let the model keep "
                "no outputs of its passes, and take torch.nn.utils.parametrizations in place of the old weight_norm"
            ) from error
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            if "lr" in group:
                group["lr"] = group["lr"] * SLOW
        return model, optimizers

    def engine(
        self, method: Method, layout: Layout, mesh: Any = None, *, alone: bool = False, executor: Executor | None = None
    ) -> tuple[Engine, Sequence[Optimizer]]:
        """An engine on a copy of the model, divided by a layout.

        Args:
            method: The method.
            layout: The layout.
            mesh: The ``DeviceMesh`` of all ranks with the dimensions "probe" and "data"; None on one rank.
            alone: Whether every rank trains for itself, without averages.
            executor: What answers the probes; by default one after the other, or the mesh.
        """
        model, optimizers = self.copies()
        if layout.data > 1 and not alone:
            group = mesh["data"].get_group()
            # The fastest settings of DDP, see lowland.bench.two_processes.worker.
            model = DistributedDataParallel(
                model, process_group=group, bucket_cap_mb=BUCKET / 2**20, gradient_as_bucket_view=True
            )
            model.broadcast_buffers = False
        engine = Engine(
            method,
            model,
            optimizers,
            self.loss_fn,
            mesh=mesh["probe"] if layout.probe > 1 and not alone else None,
            executor=executor,
            micro_batch=layout.micro_batch,
            cut=self.batches.cutter,
            allow_unaveraged=alone or layout.data == 1,
            total_steps=self.total,
            rng=self.rng,
        )
        return engine, optimizers


def train_step(engine: Engine, optimizers: Sequence[Optimizer], batch: Any) -> None:
    """Take one step of a training."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    engine.backward(batch)
    for optimizer in optimizers:
        optimizer.step()
