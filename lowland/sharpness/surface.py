"""The loss of a model around its weights: in evaluation mode, in full precision, and with everything restored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lowland.core import precision
from lowland.core.batch import Batches
from lowland.core.cutting import Cutter
from lowland.core.errors import ArgumentError, ParameterError
from lowland.core.loss import LossFn, Terms, terms
from lowland.core.probe import Probe, Reading
from lowland.core.transfer import scalar
from lowland.core.vec import Vec, wide
from lowland.executors import Local, Work
from lowland.executors.displacement import forget_derived
from lowland.executors.modes import traceless
from lowland.sharpness.estimates import refuse_uneven


class Piece(NamedTuple):
    """Some examples that one pass sees.

    Attributes:
        batch: The examples, as the loss function takes them.
        cut: Whether they are a part of one of the given batches, so that their mean loss has no known weight.
    """

    batch: Any
    cut: bool


class Surface:
    """Reads losses and gradients at displaced weights; made by :func:`surface`.

    Args:
        work: The model, its trainable parameters and the loss function.

    Attributes:
        params: The trainable parameters, each once.
    """

    def __init__(self, work: Work) -> None:
        self.work, self.params = work, work.params
        self._executor = Local()
        self._passes = 0

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.work.device

    def pieces(self, batches: Iterable[Any], most: int | None = None) -> Iterator[Piece]:
        """The batches one after the other, cut into micro-batches of at most ``most`` examples.

        Raises:
            ArgumentError: There is no batch.
        """
        empty = True
        for batch in batches:
            for part in self.work.batches.split(batch, most):
                yield Piece(part, cut=part is not batch)
                empty = False
        if empty:
            raise ArgumentError("batches must hold at least one batch, but are empty; pass training examples")

    def read(self, piece: Piece, at: Vec | None = None, *, grad: bool = False) -> Reading:
        """The loss of a piece, and if asked its gradient, at the weights plus the displacement ``at``."""
        probe = self._probe(piece, at, grad)
        (reading,) = self._executor.run(self.work, (probe,))
        return reading

    def _probe(self, piece: Piece, at: Vec | None = None, grad: bool = False) -> Probe:
        """A probe that leaves no trace; each is a step of its own, so that only some passes search the model anew."""
        self.work.first = self._passes == 0
        if self._passes:
            self.work.begin(self._passes)
        self._passes += 1
        return Probe(piece.batch, at=at, grad=grad, stats=False, cut=piece.cut)

    def weight(self, piece: Piece, reading: Reading) -> Tensor:
        """What the mean loss of a piece weighs: its ``Loss``'s count, or its number of examples; shape ``()``."""
        count = reading.divisor
        count = float(self.work.batches.size(piece.batch)) if count is None else count
        return scalar(count, wide(self.device), self.device)

    @contextmanager
    def graph(self, piece: Piece) -> Iterator[Terms]:
        """The loss of a piece with its graph, to be differentiated in the context, whose end restores the buffers."""
        probe = self._probe(piece)
        forget_derived()
        with self.work.buffers.passing(probe), traceless(), torch.enable_grad():
            loss = self.work.loss_fn(self.work.model, piece.batch)  # type: ignore[misc]
            yield terms(loss, self.work.batches.known_size(piece.batch))

    def mean(self, pieces: list[Piece], at: Vec | None = None) -> float:
        """The mean loss over pieces at the weights plus the displacement ``at``; forward passes only."""
        loss, _ = self._mean(pieces, at, grad=False)
        return float(loss)

    def gradient(self, pieces: list[Piece]) -> tuple[float, Vec]:
        """The mean loss over pieces at the weights, and its gradient."""
        loss, gradient = self._mean(pieces, None, grad=True)
        return float(loss), gradient

    def _mean(self, pieces: list[Piece], at: Vec | None, *, grad: bool) -> tuple[Tensor, Vec]:
        losses, weights, sums = [], [], [torch.zeros_like(p) for p in self.params] if grad else []
        means = 0
        for piece in pieces:
            reading = self.read(piece, at, grad=grad)
            weight = self.weight(piece, reading)
            means += reading.divisor is None
            losses.append(reading.loss.to(weight.dtype))
            weights.append(weight)
            sums = [s + weight.to(g.dtype) * g for s, g in zip(sums, reading.grad or [], strict=True)]
        known = torch.stack(weights)
        if means:
            refuse_uneven(known)
        total = known.sum()
        return (torch.stack(losses) * known).sum() / total, [s / total.to(s.dtype) for s in sums]


@contextmanager
def surface(model: nn.Module, loss_fn: LossFn, cut: Cutter | None = None) -> Iterator[Surface]:
    """Set evaluation mode and full precision, and clear ``.grad``; restore everything bit for bit afterwards.

    Args:
        model: The model, with the weights around which the loss is read.
        loss_fn: ``(model, batch) -> (B,), () or Loss``.
        cut: The object that cuts batches, as for :class:`lowland.Engine`; by default tensors along dimension 0.

    Raises:
        ParameterError: No parameter is trainable, or a trainable one is in bf16 or fp16.
    """
    params: Vec = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ParameterError(
            "model must have trainable parameters, around which its loss is measured, but all are frozen; call "
            "requires_grad_() on those that the measure may move"
        )
    if precision.is_low(params):
        raise ParameterError(
            "parameters must be fp32 or fp64 for a sharpness, but some are in bf16 or fp16, in which a displacement is "
            "rounded; measure a copy: copy.deepcopy(model).float()"
        )
    work = Work(model, params, loss_fn=loss_fn, batches=Batches(cut), scaler=None, micro_batch=None, rng="free")
    with ExitStack() as stack:
        stack.enter_context(_set_aside(model, params))
        stack.enter_context(_full_precision())
        yield Surface(work)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Disable TF32, whose rounding is larger than a small displacement."""
    flags = [(torch.backends.cuda.matmul, torch.backends.cuda.matmul.allow_tf32)]
    flags.append((torch.backends.cudnn, torch.backends.cudnn.allow_tf32))  # type: ignore[arg-type]
    try:
        for backend, _ in flags:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in flags:
            backend.allow_tf32 = allowed


@contextmanager
def _set_aside(model: nn.Module, params: Vec) -> Iterator[None]:
    """Set evaluation mode and clear ``.grad``; restore both afterwards."""
    grads = [p.grad for p in params]
    modes = [(module, module.training) for module in model.modules()]
    try:
        for p in params:
            p.grad = None
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad
