"""Lightning: a callback that trains by a method; the LightningModule does not change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor

from lowland.core.batch import Parts
from lowland.core.errors import MissingExtraError, UsageError
from lowland.core.loss import Loss
from lowland.engine import Engine
from lowland.executors import Pass
from lowland.integrations import checkpoints, refusals
from lowland.integrations.logging import Logging
from lowland.integrations.means import check_examples
from lowland.integrations.temporary import synchronized
from lowland.methods.base import Method

try:
    from lightning.pytorch import Callback
except (ImportError, RuntimeError):
    try:
        from pytorch_lightning import Callback  # the other name of the same package
    except (ImportError, RuntimeError) as error:
        raise MissingExtraError("lightning", "lightning") from error

OPTIONS = ("rng", "seed", "cut", "micro_batch")


class Sharpness(Callback):  # type: ignore[misc]
    """Trains a LightningModule by a method; the module does not change.

    ::

        trainer = Trainer(callbacks=[Sharpness(lowland.SAM(rho=0.05))], max_epochs=10)
        trainer.fit(module, loader)

    ``training_step`` runs once for every pass of the method. Logged values, metrics and the returned value are those of
    the pass that reports. Hooks, clipping, the optimizer's step and schedules run once a step.

    Args:
        method: The method, such as ``SAM(rho=0.05)``. Methods that choose examples by their losses are refused.
        resume: How a method with state resumes from a checkpoint without its state: "exact" refuses it, "cold" starts
            the method anew.
        **options: Options of :class:`lowland.Engine`: ``rng``, ``seed``, ``cut`` and ``micro_batch``.

    Attributes:
        engine: The engine of the current or last training; None before the first one.
        reporting: False during a pass that does not report; see also ``lowland.displaced()``.

    Raises:
        ArgumentError: An argument breaks its rule.
    """

    def __init__(self, method: Method, *, resume: str = "exact", **options: Any) -> None:
        super().__init__()
        refusals.check_mean(method, "training_step")
        checkpoints.check_resume("resume", resume)
        refusals.check_options("options", options, OPTIONS, "the Trainer decides the rest")
        self.method, self.resume = method, resume
        self.most: int | None = options.pop("micro_batch", None)
        self.options = options
        self.engine: Engine | None = None
        self.reporting = True
        self._grads: list[Tensor | None] = []
        self._states: list[Any] | None = None  # the states of all ranks, from a checkpoint
        self._resumed = False

    # The training

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the engine, and replace the strategy's ``training_step`` and ``backward``."""
        refusals.check_lightning(trainer, pl_module, Sharpness)
        strategy = trainer.strategy
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        engine = Engine(self.method, strategy.model, trainer.optimizers[0], scaler=scaler, **self.options)
        if self._states is not None:
            rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
            engine.load_state_dict(self._states[min(rank, len(self._states) - 1)])
        elif self._resumed:
            option = 'Sharpness(…, resume="cold")'
            checkpoints.check_missing(
                engine, "that of ckpt_path", resume=self.resume, option=option, knows_progress=True
            )
        self.engine, self._states, self._resumed = engine, None, False
        self._logging, self._checked_step = Logging(pl_module), -1
        step = strategy.training_step

        def training_step(*args: Any, **kwargs: Any) -> Any:
            return self._run(trainer, pl_module, step, *args, **kwargs)

        def backward(loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return self._add_gradient(trainer, pl_module, loss)

        strategy.training_step, strategy.backward = training_step, backward

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Restore the strategy's own functions."""
        for name in ("training_step", "backward"):
            vars(trainer.strategy).pop(name, None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Restore the strategy's own functions."""
        self.on_train_end(trainer, pl_module)

    def _run(self, trainer: Any, module: Any, step: Any, batch: Any, *rest: Any) -> Any:
        """Run all passes in place of ``training_step``, and keep the gradient until Lightning runs backward."""
        engine = self.engine
        assert engine is not None
        self._check_accumulation(trainer, engine)
        if self.method.needs_progress:
            engine.progress = fraction(trainer)
        before_step, result = [param.grad for param in engine.params], None
        for param in engine.params:
            param.grad = None  # from the step before, because Lightning zeroes after training_step
        examples = batch if self.most is None else Parts(engine.batches.split(batch, self.most))
        try:
            with synchronized(engine.work.replicas.ddps):
                for p in engine.passes(examples):
                    wrong = self._check_once(p, step, batch, rest)
                    with p, self._reporting(p.reports):
                        if wrong is not None:
                            raise wrong  # in the pass, which then reverts the step
                        returned = self._pass(p, step, rest)
                        result = returned if p.reports else result
            self._logging.send()
            self._grads = [param.grad for param in engine.params]
        finally:
            self._logging.forget()
            for param, grad in zip(engine.params, before_step, strict=True):
                param.grad = grad
        assert engine.loss is not None
        loss = engine.loss.clone()
        return {**result, "loss": loss} if isinstance(result, Mapping) else loss

    def _pass(self, p: Pass, step: Any, rest: tuple[Any, ...]) -> Any:
        """Run ``training_step`` on a pass's batch, or on each of its parts; return the last returned value."""
        assert self.engine is not None
        result, several = None, in_parts(p)
        for part in p.parts():
            rows = self.engine.batches.size(part) if several else 1
            with self._logging.of(rows if several else None):
                result = step(part, *rest)
            loss = result.get("loss") if isinstance(result, Mapping) else result
            if not isinstance(loss, Tensor):
                raise UsageError(
                    "training_step must return a loss in every step, a tensor or a dict with one under the key "
                    f'"loss", but returned {result!r:.100}; filter batches in the data set instead of skipping them'
                )
            p.backward(Loss(loss * rows, rows) if several else loss, part=part)
            del loss
        return detached(result)

    def _check_once(self, p: Pass, step: Any, batch: Any, rest: tuple[Any, ...]) -> Exception | None:
        """Check that a loss that is cut is a mean over examples, in steps 0, 1, 2, 4, 8, …; return the error."""
        engine = self.engine
        assert engine is not None
        if in_parts(p) and engine.step & (engine.step - 1) == 0 and self._checked_step != engine.step:
            self._checked_step = engine.step
            try:
                with self._reporting(False):
                    check_examples(engine, lambda part: step(part, *rest), batch)
            except Exception as error:
                return error
        return None

    def _add_gradient(self, trainer: Any, module: Any, loss: Tensor) -> Tensor:
        """Add the step's gradient to ``.grad`` in place of backward, between the plugin's hooks."""
        assert self.engine is not None
        plugin = trainer.precision_plugin
        loss = plugin.pre_backward(loss, module)
        for p, grad in zip(self.engine.params, self._grads, strict=True):
            if grad is not None:
                grad = grad / trainer.accumulate_grad_batches
                p.grad = grad if p.grad is None else p.grad + grad
        self._grads = []
        return plugin.post_backward(loss, module)  # type: ignore[no-any-return]

    @contextmanager
    def _reporting(self, reports: bool) -> Iterator[None]:
        """Set ``reporting`` in this context, and log nothing if the pass does not report."""
        before, self.reporting = self.reporting, reports
        try:
            with self._logging.muted(not reports):
                yield
        finally:
            self.reporting = before

    def _check_accumulation(self, trainer: Any, engine: Engine) -> None:
        count = trainer.accumulate_grad_batches
        if count > 1 and checkpoints.keeps(engine, knows_progress=True):
            raise UsageError(
                f"accumulate_grad_batches must be 1 for {engine.method.kind}, which keeps something from step to step "
                f"or counts steps, but is {count}, and Lightning would take {count} steps of the method for one of the "
                "optimizer; for the same step in the same memory, let the loader give batches that are "
                f"{count} times larger, and cut them: Sharpness(method, micro_batch=…)"
            )

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The states of all ranks' engines, because only the first rank writes; Lightning calls this on every rank."""
        if self.engine is None:
            return {}
        mine = self.engine.state_dict()
        if not (dist.is_available() and dist.is_initialized()):
            return {"engines": [mine]}
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, mine)
        return {"engines": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states of a checkpoint until the training starts.

        Args:
            state_dict: The value of :meth:`state_dict`.
        """
        self._states = state_dict.get("engines")

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Note that the training resumes, also from a checkpoint without a state of this callback."""
        self._resumed = True


def fraction(trainer: Any) -> float:
    """The completed fraction of the training, in [0, 1].

    Raises:
        UsageError: The length of the training is infinite.
    """
    steps: float = trainer.estimated_stepping_batches
    if not math.isfinite(steps):
        raise UsageError(
            "the training's length must be known to a method that goes by its fraction, but is infinite; pass "
            "Trainer(max_steps=…) or max_epochs"
        )
    done: int = trainer.global_step
    return min(1.0, done / max(1, steps))


def in_parts(p: Pass) -> bool:
    """Whether ``training_step`` gets a part of the batch in a pass."""
    return bool(p.probe.cut) or isinstance(p.batch, Parts)


def detached(result: Any) -> Any:
    """The value of ``training_step`` with detached tensors if it is a mapping; else None."""
    if isinstance(result, Mapping):
        return {k: v.detach() if isinstance(v, Tensor) else v for k, v in result.items()}
    return None
