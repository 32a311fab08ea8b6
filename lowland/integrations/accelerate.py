"""Accelerate: one perturbation for all micro-batches of an optimizer step, and the engine's state in checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lowland.core.batch import Parts
from lowland.core.errors import ArgumentError, MissingExtraError, UsageError
from lowland.core.loss import LossFn
from lowland.engine import Engine, lookahead
from lowland.integrations import checkpoints, refusals
from lowland.methods.base import Method

try:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
except (ImportError, RuntimeError) as error:
    raise MissingExtraError("accelerate", "accelerate") from error

PREPARE = "write: model, optimizer, loader = accelerator.prepare(model, optimizer, loader)"
DOORS = "_lowland_doors"  # the accelerator's attribute with the list of its Sharpness objects


class Sharpness:
    """Trains by a method in a loop with an accelerator: ``backward(batch)`` replaces ``accelerator.backward(loss)``.

    ::

        sharp = Sharpness(accelerator, lowland.SAM(), model, optimizer, loss_fn)  # after accelerator.prepare
        for batch in loader:
            with accelerator.accumulate(model):
                loss = sharp.backward(batch)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()

    One optimizer step is one step of the method: its micro-batches are held, and all run at the last one. Do not divide
    the loss by their number. ``accelerator.save_state`` and ``load_state`` save and load the engine's state, too.

    Args:
        accelerator: The accelerator.
        method: The method, such as ``SAM(rho=0.05)``.
        model: The model as ``accelerator.prepare`` has returned it, or several modules as a list, tuple or dict.
        optimizer: The optimizer as ``accelerator.prepare`` has returned it, or several as a list or tuple.
        loss_fn: ``(model, batch) -> loss``: one loss per example, ``(B,)``, or a :class:`lowland.Loss`. A mean, ``()``,
            is for steps of one micro-batch, because the weight of a part's mean is not known.
        resume: How a method with state resumes from a checkpoint without its state: "exact" refuses it, "cold" starts
            the method anew.
        **options: Further options of :class:`lowland.Engine`, such as ``micro_batch``, ``rng`` and ``total_steps``.
            The scaler is the accelerator's.

    Attributes:
        engine: The engine.
        loss: The loss of the last step, detached, shape ``()``; None before the first.

    Raises:
        ArgumentError: An argument breaks its rule.
        UsageError: Model or optimizer were not prepared, or this accelerator's gradients are not in ``.grad``.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        method: Method,
        model: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module],
        optimizer: Any,
        loss_fn: LossFn,
        *,
        resume: str = "exact",
        **options: Any,
    ) -> None:
        checkpoints.check_resume("resume", resume)
        check_prepared(accelerator, model, optimizer)
        if "scaler" in options:
            raise ArgumentError(
                "scaler must be left out, because it is the accelerator's; write Accelerator(mixed_precision=…)"
            )
        if loss_fn is None:
            raise ArgumentError(
                "loss_fn must be a function (model, batch) -> loss, but is None; Sharpness runs the model by itself"
            )
        bases = [lookahead.unwrap(one) for one in (optimizer if isinstance(optimizer, list | tuple) else [optimizer])]
        self.engine = Engine(method, model, bases, loss_fn, scaler=accelerator.scaler, **options)
        self.accelerator, self.resume = accelerator, resume
        self._held: list[Any] = []
        self._number = _register(self)
        self._hooks = [
            accelerator.register_save_state_pre_hook(self._save),
            accelerator.register_load_state_pre_hook(self._load),
        ]

    @property
    def loss(self) -> Tensor | None:
        """The loss of the last step."""
        return self.engine.loss

    def backward(self, batch: Any) -> Tensor | None:
        """Hold a micro-batch; at the last one of an optimizer step, add the method's gradient to ``.grad``.

        Args:
            batch: The examples, as the loss function takes them.

        Returns:
            The step's mean loss, detached, shape ``()``; None for micro-batches that are held.

        Raises:
            BatchError: The batch is empty or an iterator.
            LossError: The loss function returns no usable loss, or a mean although there are several micro-batches.
        """
        if not self.accelerator.sync_gradients:
            self._held.append(self.engine.batches.copy(batch))  # a loader may refill the same buffers
            return None
        micro_batches, self._held = [*self._held, batch], []
        return self.engine.backward(micro_batches[0] if len(micro_batches) == 1 else Parts(micro_batches))

    def discard(self) -> None:
        """Discard the held micro-batches; call it if a loop ended in the middle of a step."""
        self._held = []

    def _save(self, models: Any, weights: Any, folder: str | os.PathLike[str]) -> None:
        if self._held:
            raise UsageError(
                f"accelerator.save_state must come after a step, but {len(self._held)} micro-batches are held, which "
                "no checkpoint has; call it where accelerator.sync_gradients is True, after optimizer.step()"
            )
        checkpoints.save(self.engine, folder, self.accelerator.process_index, self._number)

    def _load(self, models: Any, folder: str | os.PathLike[str]) -> None:
        self.discard()
        rank, option = self.accelerator.process_index, 'Sharpness(…, resume="cold")'
        checkpoints.load(
            self.engine, folder, rank, resume=self.resume, option=option, knows_progress=False, number=self._number
        )

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _register(door: Sharpness) -> int:
    """Number a Sharpness object on its accelerator; it replaces an earlier object with the same optimizers."""
    doors: list[Sharpness] = vars(door.accelerator).setdefault(DOORS, [])
    for number, other in enumerate(doors):
        if other.engine.optimizers == door.engine.optimizers:
            other._remove_hooks()
            doors[number] = door
            return number
    doors.append(door)
    return len(doors) - 1


def check_prepared(accelerator: Any, model: Any, optimizer: Any) -> None:
    """Refuse models and optimizers that are not prepared, and accelerators whose gradients are not in ``.grad``.

    Raises:
        ArgumentError: ``accelerator`` is no ``Accelerator``.
        UsageError: Model or optimizer were not prepared, or the kind of distributed training is not supported.
    """
    if not isinstance(accelerator, Accelerator):
        raise ArgumentError(
            f"accelerator must be an accelerate.Accelerator, but is a {type(accelerator).__name__}; pass the object "
            "that prepares model and optimizer"
        )
    refusals.check_accelerator(accelerator)
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1 and accelerator.num_processes == 1:
        raise UsageError(
            f"accelerator must know all {count} processes, but knows one, so that each process would train a model of "
            "its own; on a CPU, write Accelerator(cpu=True)"
        )
    modules = model.values() if isinstance(model, Mapping) else model if isinstance(model, list | tuple) else [model]
    for module in modules:
        if isinstance(module, nn.Module) and not getattr(module, "_is_accelerate_prepared", False):
            raise UsageError(
                f"model must be what accelerator.prepare returned, but this {type(module).__name__} is not, so that "
                f"its gradients would not be averaged over ranks; {PREPARE}"
            )
    for one in optimizer if isinstance(optimizer, list | tuple) else [optimizer]:
        refusals.check_optimizer(one)
        if not isinstance(one, AcceleratedOptimizer):
            raise UsageError(
                f"optimizer must be what accelerator.prepare returned, but is a {type(one).__name__}, which would "
                f"step with every micro-batch; {PREPARE}"
            )
