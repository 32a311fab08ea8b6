"""One probe after the other, on the device where the model lives."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor

from lowland import batch as batches
from lowland import modes, vec
from lowland.errors import LossError, ParameterError, UsageError
from lowland.executors.base import Executor, Work
from lowland.modes import compiled, frozen_stats, only
from lowland.probe import Probe, Reading
from lowland.vec import Vec


def whole(params: Vec, at: Vec) -> None:
    """Refuse a displacement that does not fit the parameters, or was spent."""
    if len(at) != len(params):
        raise UsageError(
            f"a displacement must have one tensor for each of {len(params)} parameters, but has {len(at)}; "
            "a Probe is asked once, so yield a new Probe"
        )


@contextmanager
def displaced(params: Vec, at: Vec) -> Iterator[None]:
    """Move the weights by ``at`` and bring back a saved copy, bit for bit, whatever is raised inside.

    The list ``at`` is emptied once the weights have moved. Subtracting instead of copying would leave rounding
    behind, different on ranks that moved differently.
    """
    whole(params, at)
    with torch.no_grad():
        saved = vec.clone(params)
        try:
            vec.add_(params, at)
            at.clear()
            torch.clear_autocast_cache()
            with torch.enable_grad():
                yield
        finally:
            vec.copy_(params, saved)
            # Autocast keeps low-precision copies of weights and would not notice that they moved.
            torch.clear_autocast_cache()


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
        self.sparse = True  # False where the caller's backward must find all parameters as they are
        self._inputs: list[Tensor] | None = None  # what a compiled model's loss is differentiated for; None: all

    @property
    def batch(self) -> Any:
        """The examples of this pass."""
        return self.probe.batch

    def __enter__(self) -> Pass:
        """Move the weights, freeze statistics and parameters, rewind random numbers, as the probe asks."""
        work, probe = self.work, self.probe
        with ExitStack() as stack:
            if probe.at is not None:
                stack.enter_context(displaced(work.params, probe.spend()))
            if work.replicas.groups:
                stack.enter_context(work.replicas.passing(probe.sync, probe.wrt is None))
            if not probe.stats:
                stack.enter_context(frozen_stats(work.model))
            if probe.wrt is not None and not work.replicas.sharded:  # fully_shard's backward is for all parameters
                if not self.sparse or compiled(work.model):
                    self._inputs = [p for p, wanted in zip(work.params, probe.wrt, strict=True) if wanted]
                else:
                    stack.enter_context(only(work.params, probe.wrt))
            if work.rng is not None:
                work.rng.rewind()
            stack.enter_context(torch.set_grad_enabled(probe.grad))
            self._stack = stack.pop_all()
        return self

    def backward(self, loss: Tensor, share: float = 1.0, part: Any = None) -> None:
        """Take the loss of this pass, run backward, and keep the gradient.

        Args:
            loss: One loss per example, ``(B,)``, or their mean, ``()``.
            share: Weight of this loss where a pass consists of several parts.
            part: The examples of this part; None means the whole batch.

        Raises:
            LossError: The loss has another shape, or does not depend on any parameter.
        """
        mean = _mean(loss, self.probe.batch if part is None else part)
        if loss.dim() == 1:
            self._losses.append(loss.detach())
        if self.probe.grad:
            self._differentiate(mean if share == 1.0 else mean * share)
        part = mean.detach() * share if share != 1.0 else mean.detach()
        self._loss = part if self._loss is None else self._loss + part

    def _differentiate(self, loss: Tensor) -> None:
        if not loss.requires_grad or self._inputs == []:
            if self.probe.wrt is not None and not all(self.probe.wrt):
                return  # the loss may well not depend on the few parameters that are asked for: zeros
            raise LossError(
                "loss_fn must return a loss that depends on the model's trainable parameters, but the loss "
                "needs no gradient; compute it from the model's output without detach() or no_grad()"
            )
        if self.work.scaler is not None:
            loss = self.work.scaler.scale(loss)
        loss.backward(inputs=self._inputs)  # type: ignore[no-untyped-call]

    def answer(self) -> Reading:
        """The reading, given away: this pass does not keep its memory.

        Raises:
            UsageError: The pass was not run.
        """
        reading, self.reading = self.reading, None
        if reading is None:
            raise UsageError("a pass was not run; write: for p in engine.passes(batch): with p: …")
        return reading

    def adopt(self, loss: Tensor) -> None:
        """Take the loss of a forward and backward that the caller has already run."""
        self._loss = loss.detach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the gradients and restore the weights."""
        params = self.work.params
        try:
            grads = [p.grad for p in params]
            for p in params:
                p.grad = None
            if self.probe.wrt is not None:  # a caller's own backward may have done more than was asked
                grads = [g if wanted else None for g, wanted in zip(grads, self.probe.wrt, strict=True)]
        finally:
            self._stack.close()  # whatever interrupts the lines above, the weights come back
        failed = True
        try:
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
        losses = torch.cat(self._losses) if self._losses else None
        return Reading(self._loss, self._taken(grads) if self.probe.grad else None, losses)

    def _taken(self, grads: list[Tensor | None]) -> Vec:
        work = self.work
        if work.replicas.groups:
            grads = work.replicas.taken(grads, self.probe.sync, self.probe.wrt)
        strided = torch.strided
        if all(g is not None and g.layout is strided for g in grads):  # by far the most frequent, so it is quick
            work.reached, taken = [True] * len(grads), cast(Vec, grads)
        else:
            if any(g is not None and g.layout is not strided for g in grads):
                raise ParameterError(
                    "gradients must be dense, but a parameter's gradient is sparse; make its module with sparse=False"
                )
            work.reached = [r or g is not None for r, g in zip(work.reached, grads, strict=True)]
            taken = [torch.zeros_like(p) if g is None else g for g, p in zip(grads, work.params, strict=True)]
        scale = work.scale()
        if scale is not None:
            work.check(vec.finite(taken))
            vec.div_(taken, scale)
        return taken


class Local(Executor):
    """Answers one probe after the other, in micro-batches where the engine asks for them."""

    def run(self, work: Work, probes: tuple[Probe, ...]) -> tuple[Reading, ...]:
        """See :meth:`Executor.run`."""
        return tuple([_answer(work, probe) for probe in alone(work, probes)])

    def passes(
        self, work: Work, probes: tuple[Probe, ...], on_error: Callable[[], None] | None = None
    ) -> Generator[Pass, None, tuple[Reading, ...]]:
        """See :meth:`Executor.passes`."""
        readings = []
        for probe in alone(work, probes):
            current = Pass(work, probe, on_error=on_error)
            yield current
            readings.append(current.answer())
        return tuple(readings)


def alone(work: Work, probes: tuple[Probe, ...]) -> Iterator[Probe]:
    """One probe after the other; those asked together draw random numbers as if each had a device of its own."""
    seeds = work.seeds(len(probes))
    if not seeds:
        yield from probes
        return
    for probe, seed in zip(probes, seeds, strict=True):
        with modes.branch(work.device, seed):
            yield probe


def _answer(work: Work, probe: Probe) -> Reading:
    loss_fn = probe.loss_fn or work.loss_fn
    if loss_fn is None:
        raise UsageError(
            "loss_fn is None, so the engine cannot run the model; pass Engine(…, loss_fn=…), or run the passes "
            "yourself: for p in engine.passes(batch): with p: p.backward(loss_fn(model, p.batch))"
        )
    with Pass(work, probe) as p:
        count = batches.size(probe.batch)
        if work.micro_batch is None or count <= work.micro_batch:
            p.backward(loss_fn(work.model, probe.batch))
        else:
            parts = batches.split(probe.batch, work.micro_batch)
            for number, part in enumerate(parts, 1):
                with work.replicas.part(last=number == len(parts)):
                    p.backward(loss_fn(work.model, part), batches.size(part) / count, part)
    return p.answer()


def _mean(loss: Any, batch: Any) -> Tensor:
    if not isinstance(loss, Tensor):
        raise LossError(
            f"loss_fn must return a tensor of shape (B,) or (), but returned a {type(loss).__name__}; "
            'return the loss itself, such as cross_entropy(…, reduction="none")'
        )
    if not loss.is_floating_point():
        raise LossError(
            f"loss_fn must return a floating-point loss, but returned {loss.dtype}; return the loss, not a count"
        )
    if loss.dim() == 0:
        return loss
    count = batches.size(batch) if batch is not None else len(loss)
    if loss.dim() != 1 or len(loss) != count:
        raise LossError(
            f"loss_fn must return one loss per example, shape ({count},), or their mean, shape (), but returned "
            f'shape {tuple(loss.shape)}; use reduction="none" or "mean" and average other dimensions'
        )
    return loss.mean()
