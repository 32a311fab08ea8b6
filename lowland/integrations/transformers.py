"""Hugging Face's Trainer and its subclasses, such as trl's: one perturbation for each optimizer step."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from lowland.core.batch import Parts
from lowland.core.errors import ArgumentError, MissingExtraError, UsageError
from lowland.core.loss import Loss
from lowland.engine import Engine, lookahead
from lowland.executors import Pass
from lowland.integrations import checkpoints, refusals
from lowland.integrations.normalizing import Normalization
from lowland.integrations.temporary import standing_in
from lowland.methods.base import Method

try:
    from transformers import Trainer
except (ImportError, RuntimeError) as error:  # transformers itself raises RuntimeError where its imports fail
    raise MissingExtraError("transformers", "transformers") from error

OPTIONS = ("rng", "seed")
COUNTED = ("_metrics", "_total_train_tokens")  # the counters that trl's trainers update in compute_loss

SAME_EXAMPLES = (
    "every pass of a step would see others, so prepare them in the data set, the collator or a callback between steps"
)

Kind = TypeVar("Kind", bound=type)


class SharpnessMixin:
    """Makes a Trainer train by a method; it is the first base class, before the Trainer.

    ::

        class MyTrainer(SharpnessMixin, SFTTrainer): ...

        trainer = MyTrainer(model, args, train_dataset=data, sharpness=lowland.SAM(rho=0.05))

    One optimizer step is one step of the method: its ``gradient_accumulation_steps`` micro-batches share one
    perturbation. Loss, clipping, schedules, logging, checkpoints and mixed precision are the Trainer's own. Every call
    of ``train()`` starts the method anew, unless it resumes. Methods and schedules that depend on the completed
    fraction of the training take its length from ``args.max_steps`` or the number of epochs.

    Args:
        *args: As the Trainer's.
        sharpness: The method, such as ``SAM(rho=0.05)``. Methods that choose examples by their losses are refused.
        sharpness_options: Options of :class:`lowland.Engine`: ``rng`` and ``seed``.
        sharpness_resume: How a method with state resumes from a checkpoint without its state: "exact" refuses it,
            "cold" starts the method anew.
        **kwargs: As the Trainer's.

    Attributes:
        engine: The engine of the current or last training; None before the first step.

    Raises:
        ArgumentError: An argument breaks its rule.
        UsageError: The Trainer's gradients are not in ``.grad``, or are averaged in a way unknown to the engine.
    """

    engine: Engine | None = None

    def __init__(
        self,
        *args: Any,
        sharpness: Method,
        sharpness_options: Mapping[str, Any] | None = None,
        sharpness_resume: str = "exact",
        **kwargs: Any,
    ) -> None:
        refusals.check_mean(sharpness, "the Trainer")
        checkpoints.check_resume("sharpness_resume", sharpness_resume)
        self.sharpness, self.sharpness_options = sharpness, dict(sharpness_options or {})
        cuts = "it cuts a step's examples by per_device_train_batch_size and gradient_accumulation_steps"
        refusals.check_options(
            "sharpness_options", self.sharpness_options, OPTIONS, f"the Trainer decides the rest: {cuts}"
        )
        self.sharpness_resume = sharpness_resume
        self._held: list[dict[str, Any]] = []
        self._checkpoint: str | None = None
        super().__init__(*args, **kwargs)
        check_trainer(self)

    # The training

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Begin a training without the state of an earlier one, such as micro-batches that were held when it failed."""
        self.engine, self._checkpoint = None, None
        self._held.clear()
        return super()._inner_training_loop(*args, **kwargs)  # type: ignore[misc]

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Hold a micro-batch; at the last one of an optimizer step, run the method's step on all of them.

        Returns:
            The method's loss, detached, shape ``()``; zero for micro-batches that are held.
        """
        trainer: Any = self
        examples = checkpoints.plain(inputs)
        # A step may begin in one epoch and end in the next; each micro-batch keeps the divisor of its epoch.
        count = trainer.current_gradient_accumulation_steps
        self._held.append({"inputs": examples, "items": num_items_in_batch, "count": count})
        if not trainer.accelerator.gradient_state.sync_gradients:
            return torch.zeros((), device=trainer.args.device)
        engine = self._engine_for(model)
        rows = [engine.batches.known_size(piece["inputs"]) for piece in self._held]
        step_rows = None if None in rows else sum(rows)  # type: ignore[arg-type]
        # These are numbers, not tensors, so that a method that cuts the examples copies them to every part.
        numbers = [{"rows": n, "step_rows": step_rows} for n in rows]
        parts = Parts([{**piece, **more} for piece, more in zip(self._held, numbers, strict=True)])
        self._held.clear()
        self._normalization.micro_batches = list(parts)
        model.train()
        if callable(getattr(trainer.optimizer, "train", None)):
            trainer.optimizer.train()  # a schedule-free optimizer moves the weights here, not inside a pass
        with generation_refused(trainer.accelerator.unwrap_model(model)):
            for p in engine.passes(parts):
                with p, self._counters_restored(p.reports):
                    for piece in p.parts():
                        self._run(p, model, piece)
        self._normalization.micro_batches = ()
        assert engine.loss is not None
        return engine.loss

    def _run(self, p: Pass, model: Any, piece: dict[str, Any]) -> None:
        """Run the Trainer's own step on one micro-batch, with the engine's backward."""
        trainer: Any = self
        calls = 0

        def backward(loss: Tensor, **_: Any) -> None:
            """Stand in for ``accelerator.backward``: give the loss to the engine, once."""
            nonlocal calls
            calls += 1
            if calls > 1:
                raise UsageError(
                    "training_step must call accelerator.backward once for a micro-batch, but calls it again; add the "
                    "losses up and call it once"
                )
            self._method_backward(p, model, piece, loss)

        before = trainer.current_gradient_accumulation_steps
        trainer.current_gradient_accumulation_steps = piece["count"]  # a batch from an earlier step may have another
        try:
            with standing_in(trainer.accelerator, "backward", backward):
                super().training_step(model, dict(piece["inputs"]), piece["items"])  # type: ignore[misc]
        finally:
            trainer.current_gradient_accumulation_steps = before
        if calls == 0:
            raise UsageError(
                "training_step must call accelerator.backward, which is the engine's here, but has not called it; "
                "write self.accelerator.backward(loss) instead of loss.backward()"
            )

    def _method_backward(self, p: Pass, model: Any, piece: dict[str, Any], loss: Tensor) -> None:
        """Run backward on a micro-batch's loss, which the Trainer has normalized to its share of the step's loss."""
        if not p.probe.cut:
            p.backward(loss, share=1.0, part=piece)  # the shares add up to the step's loss
            return
        assert self.engine is not None
        rows = self.engine.batches.size(piece["inputs"])
        if rows < piece["rows"]:
            loss = loss * self._normalization.fraction(model, piece, rows)
        p.backward(Loss(loss, rows / piece["step_rows"]), part=piece)

    @contextlib.contextmanager
    def _counters_restored(self, reports: bool) -> Iterator[None]:
        """Restore the counters of trl's trainers after a pass that does not report; they count every step once."""
        names = [] if reports else [name for name in COUNTED if hasattr(self, name)]
        before = {name: copy.deepcopy(getattr(self, name)) for name in names}
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    def _engine_for(self, model: Any) -> Engine:
        """The engine of this model and optimizer; a new model, as from ``model_init``, gets a new engine."""
        trainer: Any = self
        optimizer = lookahead.unwrap(trainer.optimizer)
        engine = self.engine
        if engine is None or engine.model is not model or engine.optimizer is not optimizer:
            refusals.check_optimizer(optimizer)
            scaler = trainer.accelerator.scaler
            engine = Engine(self.sharpness, model, optimizer, scaler=scaler, **self.sharpness_options)
            if self._checkpoint is not None:
                option = f'{type(self).__name__}(…, sharpness_resume="cold")'
                rank = trainer.args.process_index
                checkpoints.load(
                    engine, self._checkpoint, rank, resume=self.sharpness_resume, option=option, knows_progress=True
                )
            self.engine, self._checkpoint = engine, None
            self._normalization = Normalization(self, Trainer.compute_loss, engine)
        if self.sharpness.needs_progress:
            engine.progress = min(1.0, trainer.state.global_step / max(1, trainer.state.max_steps))
        return engine

    # Checkpoints

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        trainer: Any = self
        if self.engine is not None:
            checkpoints.save(self.engine, output_dir, trainer.args.process_index)
        trainer.accelerator.wait_for_everyone()  # a checkpoint is complete when all ranks have written theirs

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        self._checkpoint = checkpoint


def check_trainer(trainer: Any) -> None:
    """Refuse Trainers that this module does not support.

    Raises:
        UsageError: The Trainer is not supported.
    """
    if trainer.args.n_gpu > 1:
        raise UsageError(
            f"the Trainer must see one device per process, but sees {trainer.args.n_gpu} and would use DataParallel; "
            "start one process for each with torchrun, or set CUDA_VISIBLE_DEVICES=0"
        )
    refusals.check_accelerator(trainer.accelerator)
    name = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    if name in ("lomo", "adalomo") or name.endswith("_layerwise"):
        raise UsageError(
            f'optim must step after backward, but {name} steps inside it; choose another, such as optim="adafactor"'
        )
    model = getattr(trainer, "model", None)
    if getattr(model, "is_distributed_loading_by_transformers", False) or (getattr(model, "_tp_size", None) or 1) > 1:
        raise UsageError(
            "model must come whole, because the Trainer averages gradients of a model that was sharded when it was "
            "loaded in a way unknown to the engine; load it without distributed_config and tp_plan, and shard it by "
            "TrainingArguments(fsdp=True)"
        )
    if trainer.optimizer is not None:
        refusals.check_optimizer(trainer.optimizer)
    own = refusals.generating(type(trainer), Trainer)
    if own is not None:
        raise UsageError(f"the Trainer must only run the examples that it gets, but {own} makes some; {SAME_EXAMPLES}")


@contextlib.contextmanager
def generation_refused(model: Any) -> Iterator[None]:
    """Refuse calls of the model's ``generate`` in this context."""

    def generate(*_: Any, **__: Any) -> None:
        """Stand in for the model's own."""
        raise UsageError(f"a step must only run the examples that it gets, but calls generate; {SAME_EXAMPLES}")

    with standing_in(model, "generate", generate) if hasattr(model, "generate") else contextlib.nullcontext():
        yield


class SharpnessTrainer(SharpnessMixin, Trainer):  # type: ignore[misc]
    """transformers' Trainer with a method; see :class:`SharpnessMixin`."""


def sharpened(trainer_class: Kind) -> Kind:
    """Add :class:`SharpnessMixin` to a Trainer's class, such as trl's SFTTrainer.

    Args:
        trainer_class: ``transformers.Trainer`` or a subclass.

    Returns:
        A subclass that takes ``sharpness``, ``sharpness_options`` and ``sharpness_resume``, too.

    Raises:
        ArgumentError: ``trainer_class`` is no such class, or has the mixin already.
    """
    if not isinstance(trainer_class, type) or not issubclass(trainer_class, Trainer):
        raise ArgumentError(
            f"trainer_class must be a class made from transformers.Trainer, but is {trainer_class!r}; pass the class "
            "itself, such as SFTTrainer"
        )
    if issubclass(trainer_class, SharpnessMixin):
        raise ArgumentError(
            f"trainer_class must be without a method, but {trainer_class.__name__} has SharpnessMixin already; use it "
            "as it is"
        )
    name = f"Sharpness{trainer_class.__name__}"
    return type(name, (SharpnessMixin, trainer_class), {"__doc__": trainer_class.__doc__})  # type: ignore[return-value]
