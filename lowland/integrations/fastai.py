"""fastai: a callback that trains a Learner by a method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lowland.core.batch import Parts
from lowland.core.errors import MissingExtraError, UsageError
from lowland.core.loss import Loss
from lowland.engine import Engine, lookahead
from lowland.executors import Pass
from lowland.integrations import checkpoints, refusals
from lowland.integrations.means import check_examples
from lowland.integrations.temporary import standing_in
from lowland.methods.base import Method

try:
    from fastai.callback.core import Callback, CancelBatchException
    from fastai.callback.fp16 import MixedPrecision
    from fastai.optimizer import OptimWrapper
except (ImportError, RuntimeError) as error:
    raise MissingExtraError("fastai", "fastai") from error

OPTIONS = ("rng", "seed", "cut")
REFUSED = {  # callbacks by their names, because an import of all their modules would be slow
    "GradientAccumulation": "scales losses that the engine does not see; let the loader give batches that are larger, "
    "and cut them: Sharpness(method, micro_batch=…)",
    "NonNativeMixedPrecision": "keeps a second copy of the weights; use MixedPrecision",
    "ModelToHalf": "makes the weights fp16; use MixedPrecision",
    "ParallelTrainer": "runs DataParallel; train on one device, or with lowland.integrations.accelerate",
    "DistributedTrainer": "is not tested; train with lowland.integrations.accelerate",
}


class Sharpness(Callback):  # type: ignore[misc]
    """Trains a Learner by a method; model, loss, schedules and metrics are the Learner's own.

    ::

        learn = Learner(dls, model, opt_func=partial(OptimWrapper, opt=torch.optim.AdamW), cbs=Sharpness(lowland.SAM()))
        learn.fit_one_cycle(5)

    ``after_pred`` and ``after_loss`` run in every pass, because callbacks change predictions and losses there. All
    other events run once a step, such as those that clip gradients. ``learn.loss`` is the method's loss.

    Args:
        method: The method, such as ``SAM(rho=0.05)``. Methods that choose examples by their losses are refused.
        micro_batch: The largest number of examples in a forward pass; None for the whole batch.
        resume: How a method with state begins if the optimizer has a state already, as after ``learn.load``: "exact"
            refuses this without :meth:`load_state_dict`, "cold" starts the method anew.
        **options: Options of :class:`lowland.Engine`: ``rng``, ``seed`` and ``cut``.

    Attributes:
        engine: The engine. It keeps the method's state from ``fit`` to ``fit`` if model, optimizer and trainable
            parameters are the same. ``learn.save`` does not save it: save ``engine.state_dict()`` beside the model, and
            give it to :meth:`load_state_dict`.

    Raises:
        ArgumentError: An argument breaks its rule.
    """

    order, run_valid = 1000, False  # after the callbacks that change the batch
    _stateattrs = ("engine", "_kept", "_saved")  # fastai does not pickle these

    def __init__(
        self, method: Method, *, micro_batch: int | None = None, resume: str = "exact", **options: Any
    ) -> None:
        super().__init__()
        self._init_state()
        refusals.check_mean(method, "the Learner")
        checkpoints.check_resume("resume", resume)
        refusals.check_options("options", options, ("micro_batch", *OPTIONS), "the Learner decides the rest")
        self.method, self.most, self.resume, self.options = method, micro_batch, resume, options

    def _init_state(self) -> None:
        """Begin without an engine; fastai calls this for an object from a pickle, too."""
        super()._init_state()
        self.engine: Engine | None = None
        self._kept: dict[str, Any] | None = None
        self._saved: dict[str, Any] | None = None
        self._checked_step, self._entered = -1, False

    def before_fit(self) -> None:
        """Make the engine; it takes over the state of an earlier one if that trained the same parameters."""
        learn = self.learn
        check_learner(learn, self.method, self.most)
        scaler = vars(learn).get("scaler")
        scaler = scaler if scaler is not None and scaler.is_enabled() else None
        engine, before = Engine(self.method, learn.model, learn.opt, scaler=scaler, **self.options), self.engine
        if before is not None and before.optimizer is engine.optimizer and same(before.params, engine.params):
            engine.load_state_dict(before.state_dict())
        elif self._saved is not None:
            engine.load_state_dict(self._saved)
        elif before is None and engine.optimizer.state:
            option = 'Sharpness(…, resume="cold")'
            checkpoints.check_missing(
                engine, "the Learner's optimizer", resume=self.resume, option=option, knows_progress=True
            )
        self.engine, self._checked_step, self._saved = engine, -1, None
        searching = any(kind.__name__ == "LRFinder" for cb in learn.cbs for kind in type(cb).__mro__)
        self._kept = engine.state_dict() if searching else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep an engine's state for the next ``fit``; call it after ``learn.load``.

        Args:
            state_dict: The value of ``engine.state_dict()``.
        """
        self.engine, self._saved = None, state_dict

    def after_fit(self) -> None:
        """After a search for a learning rate, restore the method's state, as fastai restores model and optimizer."""
        if self._kept is not None and self.engine is not None:
            self.engine.load_state_dict(self._kept)
            self._kept = None

    def before_batch(self) -> None:
        """Run the whole step on a batch in place of the Learner.

        Raises:
            CancelBatchException: Always, so that the Learner goes on with ``after_batch``.
        """
        learn, engine = self.learn, self.engine
        assert engine is not None
        if not len(learn.yb):
            return
        if self.method.needs_progress:
            engine.progress = min(1.0, learn.pct_train)
        given, before = (learn.xb, learn.yb), [p.grad for p in engine.params]
        self._entered = True  # MixedPrecision has entered its autocast before the batch
        for p in engine.params:
            p.grad = None
        try:
            learn.pred = self._passes(engine, pytree.tree_map_only(Tensor, lambda t: t.as_subclass(Tensor), given))
            grads = [p.grad for p in engine.params]
        finally:
            learn.xb, learn.yb = given
            for p, grad in zip(engine.params, before, strict=True):
                p.grad = grad
        assert engine.loss is not None
        learn.loss_grad, learn.loss = engine.loss.clone(), engine.loss.clone()
        with standing_in(learn, "_backward", lambda: add(engine, grads)):
            learn._do_grad_opt()
        raise CancelBatchException

    def _passes(self, engine: Engine, batch: Any) -> Any:
        """Run all passes, and return the predictions of the pass that reports."""
        predictions = []
        for p in engine.passes(batch if self.most is None else Parts(engine.batches.split(batch, self.most))):
            several = bool(p.probe.cut) or self.most is not None
            wrong = self._check_once(p, batch) if several else None
            with p:
                if wrong is not None:
                    raise wrong  # in the pass, which then reverts the step
                for part in p.parts():
                    loss = self._loss(part)
                    rows = engine.batches.size(part) if several else 1
                    p.backward(Loss(loss * rows, rows) if several else loss, part=part)
                    if p.reports:
                        predictions.append(pytree.tree_map_only(Tensor, torch.detach, self.learn.pred))
                    del loss
        return predictions[0] if len(predictions) == 1 else pytree.tree_map(lambda *each: torch.cat(each), *predictions)

    def _loss(self, batch: Any) -> Tensor:
        """The Learner's loss of a batch, with the events of its forward pass."""
        learn, mixed = self.learn, [cb for cb in self.learn.cbs if isinstance(cb, MixedPrecision)]
        if mixed and not self._entered:
            mixed[0].autocast.__enter__()  # its after_loss leaves it
        self._entered = False
        learn.xb, learn.yb = batch
        learn.pred = learn.model(*learn.xb)
        learn("after_pred")
        learn.loss_grad = learn.loss_func(learn.pred, *learn.yb)
        learn.loss = learn.loss_grad.clone()
        learn("after_loss")
        loss: Tensor = learn.loss_grad
        return loss

    def _check_once(self, p: Pass, batch: Any) -> Exception | None:
        """Check that a loss that is cut is a mean over examples, in steps 0, 1, 2, 4, 8, …; return the error."""
        engine = self.engine
        assert engine is not None
        if engine.step & (engine.step - 1) == 0 and self._checked_step != engine.step:
            self._checked_step = engine.step
            try:
                check_examples(engine, self._loss, batch)
            except Exception as error:
                return error
        return None


def add(engine: Engine, grads: list[Tensor | None]) -> None:
    """Add the step's gradient to ``.grad``."""
    for p, grad in zip(engine.params, grads, strict=True):
        if grad is not None:
            p.grad = grad if p.grad is None else p.grad + grad


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether two lists have the same tensors."""
    return len(first) == len(second) and all(a is b for a, b in zip(first, second, strict=True))


def check_learner(learn: Any, method: Method, most: int | None) -> None:
    """Refuse Learners that the callback does not support.

    Raises:
        UsageError: The optimizer is fastai's own, or a callback does not go with the method.
    """
    if not isinstance(learn.opt, OptimWrapper):
        raise UsageError(
            f"the Learner's optimizer must be one of torch, but is fastai's {type(learn.opt).__name__}; write "
            "Learner(…, opt_func=partial(OptimWrapper, opt=torch.optim.AdamW))"
        )
    refusals.check_optimizer(lookahead.unwrap(learn.opt))
    if sum(isinstance(cb, Sharpness) for cb in learn.cbs) > 1:
        raise UsageError(
            "the Learner must have one Sharpness, but has several, of which all but one would be passed over; combine "
            "methods in one, such as lowland.Late or lowland.Switch"
        )
    for cb in learn.cbs:
        names = [kind.__name__ for kind in type(cb).__mro__]
        for name, why in REFUSED.items():
            if name in names:
                raise UsageError(f"the Learner must be without {name}, which {why}")
        if "MixHandler" in names and (method.needs_batch or most is not None):
            raise UsageError(
                f"the Learner must be without {type(cb).__name__} for {method.kind}, because its loss mixes the labels "
                "of the current batch, but a part of a batch or an earlier one is run; take SAM without micro_batch"
            )
