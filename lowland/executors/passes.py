"""One forward and backward pass at a displaced point; it restores everything else and returns a reading."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core import vec
from lowland.core.errors import LossError, UsageError
from lowland.core.loss import Loss, Terms, check_count, copied, divisor, one_for_all, terms
from lowland.core.probe import Probe, Reading
from lowland.core.transfer import scalar
from lowland.executors.base import Work
from lowland.executors.displacement import displaced, forget_derived
from lowland.executors.gradient import Left, check_left, gradient
from lowland.executors.guards import any_gradient, check_fresh, inspect, now, remember, suspect_after
from lowland.executors.modes import compiled, only, traceless
from lowland.executors.norm_stats import frozen_stats
from lowland.executors.still import Caller, Mark, check_forward, run_backward

# map() with this takes a tenth of the time of a Python loop, which matters for many small parameters.
_GRAD = operator.attrgetter("grad")
WEIGHT = (
    "loss_fn must return what a part of a batch weighs, too, but returned a mean, shape (), for a part; return one "
    'loss per example, reduction="none", no mean that is expanded, or lowland.Loss(total, count)'
)


class Pass:
    """One forward and backward pass at a probe's point, as a context manager; at its end ``reading`` is the answer.

    Args:
        work: The model and the step.
        probe: The probe that the pass answers.
        on_error: Called after an exception in the context; None if the engine runs forward and backward.
    """

    def __init__(self, work: Work, probe: Probe, on_error: Callable[[], None] | None = None) -> None:
        self.work = work
        self.probe = probe
        self._on_error = on_error
        self.reading: Reading | None = None
        self._stack = ExitStack()
        self._loss: Tensor | None = None
        self._losses: list[Tensor] = []
        self._aux: list[Any] = []
        self._count: Tensor | float | None = None
        self._part: Any = None  # the current part of parts()
        self._several, self._left = False, 0  # whether there are several parts; how many come after this one
        self._size: int | None = None  # the number of examples in all parts
        self._sums: Tensor | None = None  # the sums of total and count over the parts so far, shape (2,)
        self._unit: Tensor | None = None  # the divisor of the gradients so far
        self._left_behind: Left | None = None  # the gradients after a part
        self._displaced = False
        self._caller: Caller | None = None  # set if the caller runs forward and backward
        self._since: int | None = None  # the number of the graph's first node at displaced weights, in watched steps
        self._before: Mark | None = None  # the weights before a displaced forward that reports
        self.sparse = True  # False if requires_grad of the parameters must not change, for a caller's backward
        self._inputs: list[Tensor] | None = None  # the inputs of a compiled model's backward; None for all

    @property
    def batch(self) -> Any:
        """The examples of this pass."""
        return self.probe.batch

    def __enter__(self) -> Pass:
        """Enter the contexts of the probe: displaced weights, frozen statistics, frozen parameters and others."""
        try:
            self._enter()
        except BaseException:
            if self._on_error is not None:
                self._on_error()
            raise
        return self

    def _enter(self) -> None:
        work, probe = self.work, self.probe
        work.examples.before_pass(probe.batch)
        with ExitStack() as stack:
            stack.enter_context(work.buffers.passing(probe))
            self._displaced = probe.at is not None
            stack.callback(forget_derived)
            if probe.at is not None:
                stack.enter_context(displaced(work.params, probe.take_at(), each=work.step.watched, noise=probe.noise))
            if work.replicas.groups:
                stack.enter_context(work.replicas.passing(probe.sync, probe.wrt is None))
            forget_derived()
            if not probe.stats:
                stack.enter_context(frozen_stats(work.model))
                stack.enter_context(traceless())
            full_backward = (
                work.replicas.sharded
                or work.reentrant is not False
                or work.ownership.needed
                or work.buffers.asks  # so requires_grad must be as it is in training
            )
            if probe.wrt is not None and not full_backward:  # after a full backward, __exit__ drops the other gradients
                if not self.sparse or compiled(work.model):
                    pairs = zip(work.params, probe.wrt, strict=True)
                    self._inputs = [p for p, chosen in pairs if chosen and p.requires_grad]
                else:
                    stack.enter_context(only(work.params, probe.wrt))
            if work.rng is not None:
                work.rng.rewind()
            # DistributedDataParallel expects a backward after each forward with gradients.
            own_gradients = work.buffers.differentiates and not work.replicas.groups
            stack.enter_context(torch.set_grad_enabled(probe.grad or own_gradients))
            if self._on_error is not None:  # the caller runs forward and backward
                remember(work)
                self._caller = Caller(work)
            if self._displaced and work.step.watched and probe.grad:
                threads = any(isinstance(m, nn.DataParallel) for m in work.model.modules())  # their nodes count from 0
                self._since = None if threads else now()
            self._before = Mark(work, each=True) if self._displaced and probe.stats else None
            self._stack = stack.pop_all()

    @property
    def reports(self) -> bool:
        """Whether the step reports the loss of this pass and keeps the statistics that it updates."""
        return bool(self.probe.stats)

    def parts(self) -> Iterator[Any]:
        """Yield the parts of the batch, each for one forward pass: of ``Parts``, or cut by ``micro_batch``.

        A batch that is not cut is one part. Data-parallel wrappers average the gradients in the last part::

            for p in engine.passes(batch):
                with p:
                    for part in p.parts():
                        p.backward(loss_fn(model, part))
        """
        work, batch = self.work, self.batch
        parts = work.batches.split(batch, work.micro_batch) if batch is not None else [None]
        self._size = work.batches.known_size(batch) if len(parts) > 1 else None
        if work.step.watched:
            work.replicas.check_parts(len(parts), work.device)
        for number, part in enumerate(parts, 1):
            self._part, self._left, self._several = part, len(parts) - number, len(parts) > 1
            with work.replicas.micro_batch(last=self._left == 0):
                yield part

    def backward(self, loss: Tensor | Loss, share: float | None = None, part: Any = None) -> None:
        """Run backward on the loss of this pass, or on the loss of one of its parts.

        Args:
            loss: One loss per example, ``(B,)``, their mean, ``()``, or a ``Loss``. A mean of a part of a batch is
                refused, because its weight is not known.
            share: The weight of this loss if the caller cuts the batch itself: the fraction of the batch in this part.
            part: The examples of this loss if the caller cuts the batch itself; by default the current part of
                :meth:`parts`, or the batch.

        Raises:
            LossError: The loss has another shape, depends on no parameter, or is a mean of a part of the batch.
        """
        if self.work.step.watched and self._loss is None and self._sums is None and any_gradient(self.work.params):
            raise LossError(
                "loss_fn must only compute the loss, but a gradient was there before the engine's backward; leave "
                "loss.backward() out of it and return the loss"
            )
        if self._left_behind is not None:
            self._left_behind.check()
        if share is not None and not 0 <= share < float("inf"):
            raise LossError(f"share must be the fraction of the batch in this part, in [0, 1], but is {share}")
        batch = part if part is not None else self._part if self._several else self.batch
        values = terms(loss, None if batch is None else self.work.batches.known_size(batch))
        check_count(values.count)
        is_part = self.probe.cut or (share is None and self._several)
        if is_part and (values.count is None or one_for_all(values.losses)):
            raise LossError(WEIGHT)
        more = self._several or share is not None  # the forward of the next part may overwrite these values
        if values.losses is not None:
            self._losses.append(values.losses.detach().clone() if more else values.losses.detach())
        self._take(values, share)
        if values.aux is not None:
            self._aux.append(copied(values.aux) if more and self.work.ownership.needed else values.aux)

    def _take(self, values: Terms, share: float | None) -> None:
        """Differentiate a loss and add its mean to the mean of the pass."""
        if share is None and (values.total is not None or (self._several and self._size is None)):
            self._sum(values)
            return
        if share is None and self._several:
            share = len(values.losses) / self._size  # type: ignore[arg-type, operator]
        if self.probe.grad:
            self._differentiate(values.mean if share is None else values.mean * share, more=share is not None)
        mean = values.mean.detach() if share is None else values.mean.detach() * share
        self._loss = mean if self._loss is None else self._loss + mean
        if values.losses is not None:
            self._count = len(values.losses) + (self._count or 0.0)

    def _sum(self, values: Terms) -> None:
        """Run backward on a loss whose divisor, a sum over all parts and ranks, is known only in the last part.

        Earlier parts are divided by the first part's count and rescaled before the last backward. With ``fully_shard``,
        which averages every part over the ranks, they are not divided, because counts differ between ranks.
        """
        work, grad = self.work, self.probe.grad
        total = values.losses.sum() if values.total is None else values.total  # type: ignore[union-attr]
        count = scalar(values.count, vec.wide(total.device), total.device)
        own = torch.stack([total.detach().to(count.dtype), count])
        self._sums = own if self._sums is None else self._sums + own
        if self._left and self._unit is None:
            counts = count != 0 if not work.replicas.sharded else torch.zeros_like(count, dtype=torch.bool)
            self._unit = torch.where(counts, count, torch.ones_like(count))  # all of a part may be padding
        if self._left:
            if grad:
                self._differentiate(total / self._unit.to(total.dtype))  # type: ignore[union-attr]
            return
        sums, ranks = work.replicas.total(self._sums, self.probe.sync)
        overall = divisor(*sums)
        if grad:
            earlier = [p.grad for p in work.params if p.grad is not None]
            if self._unit is not None and earlier:
                vec.scale_(earlier, (self._unit * ranks / overall).to(earlier[0].dtype))
            self._differentiate(total / (overall / ranks).to(total.dtype), more=True)
        self._unit = overall / ranks  # the caller may run backward on a further Loss
        self._loss, self._count = (sums[0] / overall).to(total.dtype), sums[1]

    def _differentiate(self, loss: Tensor, more: bool = False) -> None:
        if not loss.requires_grad or self._inputs == []:
            if self.probe.wrt is not None and not all(self.probe.wrt):
                return  # the loss need not depend on the chosen parameters; their gradient is zero
            raise LossError(
                "loss_fn must return a loss that depends on the model's trainable parameters, but the loss "
                "needs no gradient; compute it from the model's output without detach() or no_grad()"
            )
        inspect(self.work, self.probe, loss)
        check_forward(self.work, self._before)
        if self.work.scaler is not None:
            loss = self.work.scaler.scale(loss)
        work = self.work
        run_backward(work, loss, self._inputs, displaced=self._displaced, chosen=self.probe.wrt is not None)
        if self._since is not None:
            check_fresh(loss, self._since)
        if self._left or more:  # the forward or backward of the next part may overwrite these gradients
            grads = work.ownership.own(list(map(_GRAD, work.params)))
            if work.ownership.needed:
                for p, grad in zip(work.params, grads, strict=True):
                    p.grad = grad
            self._left_behind = Left(work.params)

    def answer(self) -> Reading:
        """Return the reading and drop this pass's reference to it, so that its memory can be freed.

        Raises:
            UsageError: The pass was not run.
        """
        reading, self.reading = self.reading, None
        if reading is None:
            raise UsageError("a pass was not run; write: for p in engine.passes(batch): with p: …")
        return reading

    def adopt(self, loss: Tensor | Loss, batch: Any = None) -> None:
        """Use the loss of a forward and backward that the caller has run on the full batch of this pass.

        For frameworks whose training step runs backward itself. At the end of the pass the gradient of the mean must be
        in ``.grad``. A GradScaler may have scaled it only if the engine has that scaler.

        Args:
            loss: The mean loss, a tensor of any shape; for a part that a method has cut, a ``Loss`` with this mean.
            batch: The examples that the caller has used: ``p.batch``. It may be omitted if the pass is for the step's
                batch; methods that keep or cut batches have passes for other batches.

        Raises:
            LossError: The loss is not a tensor, or is the mean of a part of a batch, whose weight is not known.
            UsageError: The pass is for another batch.
        """
        if not isinstance(loss, Tensor | Loss):
            raise LossError(f"adopt needs the loss as a tensor, but got a {type(loss).__name__}; pass the loss itself")
        if batch is None if self.probe.other else batch is not None and batch is not self.batch:
            raise UsageError(
                "this pass is for other examples than the step's batch, which the method has kept or cut, so the loss "
                "of the step's batch would be wrong; run the model on p.batch and say so: p.adopt(loss, batch=p.batch)"
            )
        if self._caller is not None:
            self._caller.check()
        if self.probe.cut and isinstance(loss, Tensor):
            raise LossError(f"{WEIGHT}, such as p.adopt(lowland.Loss(mean * count, count), batch=p.batch)")
        values = terms(loss if isinstance(loss, Loss) else loss.mean(), None)
        if values.mean.requires_grad:
            suspect_after(self.work, values.mean)
        self._loss, self._count = values.mean.detach(), values.count

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Collect the gradients and restore the weights."""
        params, failed = self.work.params, True
        try:
            try:
                grads: list[Tensor | None] = list(map(_GRAD, params))
                for p in params:
                    p.grad = None
                grads = self.work.ownership.own(grads)  # before the contexts end, because they restore static buffers
                if self.probe.wrt is not None:  # drop gradients that a full backward has computed in addition
                    grads = [g if chosen else None for g, chosen in zip(grads, self.probe.wrt, strict=True)]
            finally:
                self._stack.close()  # restores the weights, also after an exception above
            if kind is None:
                self.reading = self._read(grads)
                failed = False
        finally:
            if failed and self._on_error is not None:
                self._on_error()

    def _read(self, grads: list[Tensor | None]) -> Reading:
        if self._loss is None:
            raise UsageError("a pass ended without a loss; call p.backward(loss) inside `with p:`")
        if self.work.scaler is not None and not self.probe.grad:
            self.work.step.check(torch.isfinite(self._loss))  # the plan may decide by this loss
        if self._left:
            raise UsageError("a pass ended before its last part; run the loop over p.parts() to its end")
        check_left(self.work, self.probe, grads)
        losses = torch.cat(self._losses) if self._losses else None
        aux = self._aux[0] if self._aux and not self._several else self._aux or None
        if self.work.ownership.needed or not self.probe.grad:
            self._loss, aux = self._loss.clone(), copied(aux)
        grad, reached = gradient(self.work, self.probe, grads) if self.probe.grad else (None, None)
        return Reading(self._loss, grad, losses, self._count, aux, reached)
