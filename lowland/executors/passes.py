"""One forward and backward pass at a displaced point, and what it leaves behind: nothing but its reading."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor

from lowland.core import vec
from lowland.core.errors import LossError, ParameterError, UsageError
from lowland.core.loss import Loss, Terms, divisor, one_for_all, terms
from lowland.core.probe import Probe, Reading
from lowland.core.vec import Vec
from lowland.executors.base import Work
from lowland.executors.displacement import displaced, forget_derived
from lowland.executors.guards import any_gradient, inspect, remember, suspect_after
from lowland.executors.modes import compiled, only, traceless
from lowland.executors.norm_stats import frozen_stats
from lowland.executors.still import Mark, check_forward, run_backward

# A map of these costs a tenth of a loop in Python.
_GRAD, _LAYOUT = operator.attrgetter("grad"), operator.attrgetter("layout")
_WEIGHT = (
    "loss_fn must return what a part of a batch weighs, too, but returned a mean, shape (), for a part; return one "
    'loss per example, reduction="none", no mean that is expanded, or lowland.Loss(total, count)'
)


class Pass:
    """One forward and backward at a probe's point, as a context; afterwards ``reading`` holds the answer."""

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
        self._piece: Any = None  # of what parts() gives, the part at hand
        self._several, self._left = False, 0  # whether there are several parts, and how many come after this one
        self._size: int | None = None  # the number of all their examples
        self._sums: Tensor | None = None  # total and count of the parts so far, shape (2,)
        self._unit: Tensor | None = None  # what earlier parts were divided by
        self._displaced = False
        self._before: Mark | None = None  # of the weights, before a displaced forward that reports
        self.sparse = True  # False where the caller's backward must find all parameters as they are
        self._reached: list[bool] | None = None  # which parameters backward has reached; None: all
        self._inputs: list[Tensor] | None = None  # what a compiled model's loss is differentiated for; None: all

    @property
    def batch(self) -> Any:
        """The examples of this pass."""
        return self.probe.batch

    def __enter__(self) -> Pass:
        """Move the weights, freeze statistics and parameters, rewind random numbers, as the probe asks."""
        work, probe = self.work, self.probe
        with ExitStack() as stack:
            stack.enter_context(work.buffers.passing(probe))
            self._displaced = probe.at is not None
            stack.callback(forget_derived)
            if probe.at is not None:
                stack.enter_context(displaced(work.params, probe.take_at(), each=work.watched))
            if work.replicas.groups:
                stack.enter_context(work.replicas.passing(probe.sync, probe.wrt is None))
            forget_derived()
            if not probe.stats:
                stack.enter_context(frozen_stats(work.model))
                stack.enter_context(traceless())
            whole = work.replicas.sharded or work.reentrant is not False or work.ownership.needed
            if probe.wrt is not None and not whole:  # else the whole backward runs, and the rest of it is dropped
                if not self.sparse or compiled(work.model):
                    chosen = zip(work.params, probe.wrt, strict=True)
                    self._inputs = [p for p, wanted in chosen if wanted and p.requires_grad]
                else:
                    stack.enter_context(only(work.params, probe.wrt))
            if work.rng is not None:
                work.rng.rewind()
            stack.enter_context(torch.set_grad_enabled(probe.grad))
            if self._on_error is not None:  # the caller runs forward and backward
                remember(work)
            self._before = Mark(work) if work.watched and self._displaced and probe.stats else None
            self._stack = stack.pop_all()
        return self

    @property
    def reports(self) -> bool:
        """Whether this pass belongs to the step's loss: it is at the point whose loss and statistics are reported."""
        return bool(self.probe.stats)

    def parts(self) -> Iterator[Any]:
        """What runs in one forward pass each, for a batch in ``Parts`` or one that ``micro_batch`` cuts.

        ::

            for p in engine.passes(batch):
                with p:
                    for part in p.parts():
                        p.backward(loss_fn(model, part))

        Yields:
            The parts; the whole batch where there is one. Data-parallel wrappers average gradients with the last.
        """
        work, batch = self.work, self.batch
        pieces = work.batches.split(batch, work.micro_batch) if batch is not None else [None]
        self._size = work.batches.known_size(batch) if len(pieces) > 1 else None
        for number, piece in enumerate(pieces, 1):
            self._piece, self._left, self._several = piece, len(pieces) - number, len(pieces) > 1
            with work.replicas.part(last=self._left == 0):
                yield piece

    def backward(self, loss: Tensor | Loss, share: float | None = None, part: Any = None) -> None:
        """Take the loss of this pass, run backward, and keep the gradient.

        Args:
            loss: One loss per example, ``(B,)``, their mean, ``()``, or a ``Loss``. A mean of a part of a batch is
                refused, because its weight is not known.
            share: The weight of this loss among several of this pass, where the caller cuts the batch and knows it.
            part: The examples of this loss, where the caller cuts the batch; else the whole batch, or the part that
                :meth:`parts` has given.

        Raises:
            LossError: The loss has another shape, does not depend on any parameter, or is a mean that was cut.
        """
        if self.work.watched and self._loss is None and self._sums is None and any_gradient(self.work.params):
            raise LossError(
                "loss_fn must only compute the loss, but a gradient was there before the engine's backward; leave "
                "loss.backward() out of it and return the loss"
            )
        batch = part if part is not None else self._piece if self._several else self.batch
        read = terms(loss, None if batch is None else self.work.batches.known_size(batch))
        if (self.probe.cut or (share is None and self._several)) and (read.count is None or one_for_all(read.losses)):
            raise LossError(_WEIGHT)
        if read.losses is not None:
            self._losses.append(read.losses.detach())
        if read.aux is not None:
            self._aux.append(read.aux)
        if share is None and (read.total is not None or (self._several and self._size is None)):
            self._sum(read)
            return
        if share is None and self._several:
            share = len(read.losses) / self._size  # type: ignore[arg-type, operator]
        if self.probe.grad:
            self._differentiate(read.mean if share is None else read.mean * share)
        mean = read.mean.detach() if share is None else read.mean.detach() * share
        self._loss = mean if self._loss is None else self._loss + mean
        if read.losses is not None:
            self._count = len(read.losses) + (self._count or 0.0)

    def _sum(self, read: Terms) -> None:
        """Backward of a sum whose divisor, that of all parts and ranks, is known with the last part alone.

        Earlier parts are divided by the first part's count, which keeps gradients of usual size, and scaled before the
        last one. Where ``fully_shard`` averages every part over ranks, they are not divided: counts differ by rank.
        """
        work, grad = self.work, self.probe.grad
        total = read.losses.sum() if read.total is None else read.total  # type: ignore[union-attr]
        count = read.count if isinstance(read.count, Tensor) else total.new_tensor(read.count).double()
        own = torch.stack([total.detach().to(count.dtype), count])
        self._sums = own if self._sums is None else self._sums + own
        if self._left and self._unit is None:
            self._unit = torch.ones_like(count) if work.replicas.sharded else divisor(*own)
        if self._left:
            if grad:
                self._differentiate(total / self._unit.to(total.dtype))  # type: ignore[union-attr]
            return
        sums, ranks = work.replicas.total(self._sums, self.probe.sync)
        whole = divisor(*sums)
        if grad:
            earlier = [p.grad for p in work.params if p.grad is not None]
            if self._unit is not None and earlier:
                vec.scale_(earlier, (self._unit * ranks / whole).to(earlier[0].dtype))
            self._differentiate(total / (whole / ranks).to(total.dtype))
        self._loss, self._count = (sums[0] / whole).to(total.dtype), sums[1]

    def _differentiate(self, loss: Tensor) -> None:
        if not loss.requires_grad or self._inputs == []:
            if self.probe.wrt is not None and not all(self.probe.wrt):
                return  # the loss may well not depend on the few parameters that are asked for: zeros
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
        if self._left and work.ownership.needed:  # the next part's backward would overwrite what this one has left
            for p in work.params:
                p.grad = None if p.grad is None else p.grad.clone()

    def answer(self) -> Reading:
        """The reading, given away: this pass does not keep its memory.

        Raises:
            UsageError: The pass was not run.
        """
        reading, self.reading = self.reading, None
        if reading is None:
            raise UsageError("a pass was not run; write: for p in engine.passes(batch): with p: …")
        return reading

    def adopt(self, loss: Tensor | Loss, batch: Any = None) -> None:
        """Take the loss of a forward and backward that the caller has run, on this pass's batch and on all of it.

        For frameworks whose training step runs backward itself. The mean's gradient must be in ``.grad`` at the end of
        the pass, as ``loss.backward()`` leaves it, without a GradScaler's scale unless the engine has that scaler.

        Args:
            loss: The mean loss, a tensor of any shape; for a part that a method has cut, a ``Loss`` with this mean.
            batch: The examples it was run on: ``p.batch``. It may be left out where that is the very batch that the
                step was given; methods that keep or cut batches hand out others.

        Raises:
            LossError: The loss is no tensor, or the mean of a part of a batch, whose weight is not known.
            UsageError: The pass is for another batch than the caller says.
        """
        if not isinstance(loss, Tensor | Loss):
            raise LossError(f"adopt needs the loss as a tensor, but got a {type(loss).__name__}; pass the loss itself")
        if batch is None if self.probe.other else batch is not None and batch is not self.batch:
            raise UsageError(
                "this pass is for other examples than the step's batch, which the method has kept or cut, so the loss "
                "of the step's batch would be wrong; run the model on p.batch and say so: p.adopt(loss, batch=p.batch)"
            )
        if self.probe.cut and isinstance(loss, Tensor):
            raise LossError(f"{_WEIGHT}, such as p.adopt(lowland.Loss(mean * count, count), batch=p.batch)")
        read = terms(loss if isinstance(loss, Loss) else loss.mean(), None)
        if read.mean.requires_grad:
            suspect_after(self.work, read.mean)
        self._loss, self._count = read.mean.detach(), read.count

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the gradients and restore the weights."""
        params, failed = self.work.params, True
        try:
            try:
                grads: list[Tensor | None] = list(map(_GRAD, params))
                for p in params:
                    p.grad = None
                if self.work.ownership.needed:  # now: the buffer that they lie in may be one that is put back
                    grads = [None if g is None else g.clone() for g in grads]
                if self.probe.wrt is not None:  # a caller's own backward may have done more than was asked
                    grads = [g if wanted else None for g, wanted in zip(grads, self.probe.wrt, strict=True)]
            finally:
                self._stack.close()  # whatever interrupts the lines above, the weights come back
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
            self.work.check(torch.isfinite(self._loss))  # what is decided by this loss would be wrong
        if self._left:
            raise UsageError("a pass ended before its last part; run the loop over p.parts() to its end")
        losses = torch.cat(self._losses) if self._losses else None
        if self.work.ownership.needed:
            self._loss = self._loss.clone()
            losses = None if losses is None else losses.clone()
        aux = self._aux[0] if self._aux and not self._several else self._aux or None
        grad = self._taken(grads) if self.probe.grad else None
        return Reading(self._loss, grad, losses, self._count, aux, self._reached)

    def _taken(self, grads: list[Tensor | None]) -> Vec:
        work = self.work
        if work.replicas.groups:
            grads = work.replicas.taken(grads, self.probe.sync, self.probe.wrt)
        grads = work.ownership.own(grads, check=work.step < 2)
        there = [g for g in grads if g is not None] if type(None) in map(type, grads) else cast(Vec, grads)
        if any(layout is not torch.strided for layout in set(map(_LAYOUT, there))):
            raise ParameterError(
                "gradients must be dense, but a parameter's gradient is sparse; make its module with sparse=False"
            )
        if len(there) == len(grads):
            work.reached, taken = [True] * len(grads), there
        else:
            self._reached = [g is not None for g in grads]
            work.reached = [r or g for r, g in zip(work.reached, self._reached, strict=True)]
            taken = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, work.params, strict=True)]
        scale = work.scale()
        if scale is not None:
            work.check(vec.finite(taken))
            vec.div_(taken, scale)
        return taken
