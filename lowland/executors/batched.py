"""Answers several probes in one forward and backward pass on one device."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from lowland.core import checks
from lowland.core.probe import Probe, Reading
from lowland.executors import modes
from lowland.executors.agreement import check_agreement, twins
from lowland.executors.base import Executor, Work
from lowland.executors.local import Local, Pass
from lowland.executors.stacked import tracks
from lowland.executors.together import Batch, answer_together


class Batched(Executor):
    """Answers the probes of one tuple in a single forward and backward pass, by ``vmap`` over copies of the weights.

    This is faster on a device that one pass does not keep busy: two probes launch as many kernels as one, each with
    twice the data. On a device that one pass keeps busy, such as a CPU, it is not faster than :class:`Local`.

    The readings equal those of :class:`Local` up to rounding, and the weights do not move. Running statistics of
    BatchNorm are updated for the probes that ask for it, in order. One draw gives the random numbers of all probes, and
    takes nothing from the global stream. With ``rng="free"``, dropout masks differ from those of :class:`Local`. With
    ``rng="shared"``, all probes of a step have one mask, as with :class:`Local`, and it is the same one if the method
    asks for the same tuples, as SAMPa does. mSAM asks :class:`Local` for one probe after the other, which draw from the
    global stream, so masks and the stream afterwards differ. Where torch draws masks in another order under ``vmap``,
    as in some attention layers, ``rng="shared"`` is refused.

    In an engine's first step and in steps 1, 2, 4, 8, … the first probes of each tuple are answered twice more, in one
    pass and one after the other, and compared; this leaves no trace, and :func:`lowland.displaced` is true. A model
    that differs is refused: embeddings with ``padding_idx`` or ``max_norm``; BatchNorm in training whose statistics are
    read, also in evaluation mode, or whose momentum changes; weights in other places than the parameters, or in shared
    memory; state that forward writes; code that asks a tensor for ``requires_grad`` or its class. The numbers are not
    compared if the model draws random numbers, unless by ``nn.Dropout``, which is left out, or by ``rng="shared"``.

    :class:`Local` answers all other probes: a probe that is asked alone; a tuple whose batches differ in structure,
    shape or type, such as uneven shards, or exceed ``micro_batch``; probes without a gradient, for some parameters
    (``wrt``), or with different losses; probes of models that are compiled, captured as CUDA graphs, data-parallel or
    sharded, or have hooks on gradients, or have layers with running statistics other than torch's BatchNorm; and the
    passes of ``engine.passes``.

    ``loss_fn`` runs once for all probes, on tensors whose values are not available. So it must not use ``.item()``,
    ``if`` on a tensor, or parameters that it does not get through ``model``; such functions are refused. All parameters
    count as reached: a parameter that the loss does not depend on has a zero ``.grad``, so weight decay moves it, while
    :class:`Local` does not change its ``.grad``.

    Args:
        width: The largest number of probes in one pass, >= 1; longer tuples are cut. Weights, gradients and activations
            need the memory of this many models. SAMPa asks for 2 probes; mSAM for ``width``, up to its m.

    Raises:
        ArgumentError: ``width`` is not an integer >= 1.
    """

    substitutes = True

    def __init__(self, width: int = 2) -> None:
        checks.integer("width", width, 1, "1 answers one probe after the other")
        self.width = width
        self._local = Local()

    def run(self, work: Work, probes: tuple[Probe, ...]) -> tuple[Reading, ...]:
        """See :meth:`Executor.run`.

        Raises:
            LossError: The loss function returns no valid loss.
            UsageError: The loss function cannot run for several probes at once, or computes something else then.
        """
        batch = self.batch(work, probes)
        if batch is None:
            return self._local.run(work, probes)
        if work.first or work.step.watched:
            trial, probes = twins(probes, 2, last=True)
            self.check(work, trial, batch)
        return self.answer(work, probes, batch)

    def check(self, work: Work, probes: tuple[Probe, ...], batch: Batch) -> None:
        """Compare the readings of the first ``width`` probes with those of :class:`Local`; the probes are spent.

        Raises:
            LossError: The loss function returns no valid loss.
            UsageError: The readings differ, or the loss function cannot run for several probes at once.
        """
        check_agreement(work, probes[: self.width], Batch(batch.spec, batch.leaves[: self.width]))

    def answer(self, work: Work, probes: tuple[Probe, ...], batch: Batch) -> tuple[Reading, ...]:
        """The readings of probes, at most ``width`` in one pass; the arguments are those of :meth:`check`."""
        seeds = work.seeds(len(probes))
        readings: list[Reading] = []
        for start in range(0, len(probes), self.width):
            here = slice(start, start + self.width)
            reports = any(p.stats for p in probes[here])
            with modes.branch(work.device, seeds[start]), nullcontext() if reports else modes.traceless():
                if work.rng is not None:
                    work.rng.rewind()
                with work.buffers.untouched():
                    readings += answer_together(work, probes[here], Batch(batch.spec, batch.leaves[here]))
            if work.step.suspects:
                work.dismiss()
        return tuple(readings)

    def batch(self, work: Work, probes: tuple[Probe, ...]) -> Batch | None:
        """The batches of probes that are answered together; None if :class:`Local` answers them."""
        if self.width == 1 or len(probes) == 1:
            return None
        batch = _alike(work, probes)
        return batch if batch is not None and _vmappable(work) else None

    def passes(
        self, work: Work, probes: tuple[Probe, ...], on_error: Callable[[], None] | None = None
    ) -> Generator[Pass, None, tuple[Reading, ...]]:
        """See :meth:`Executor.passes`; the passes run one after the other, because the caller runs them."""
        return self._local.passes(work, probes, on_error)


def _alike(work: Work, probes: tuple[Probe, ...]) -> Batch | None:
    """The batches, if all probes ask for the full gradient of the same loss, on batches of the same shapes."""
    loss_fn = probes[0].loss_fn
    full_gradients = all(p.grad and p.wrt is None and p.loss_fn == loss_fn for p in probes)
    if not full_gradients or (loss_fn or work.loss_fn) is None:
        return None
    if not all(work.batches.in_one(p.batch, work.micro_batch) for p in probes):
        return None
    flat = [pytree.tree_flatten(p.batch) for p in probes]
    leaves, spec = [entries for entries, _ in flat], flat[0][1]
    shape = _shape(leaves[0])
    if shape is None or any(other != spec or _shape(entries) != shape for entries, other in flat[1:]):
        return None
    return Batch(spec, leaves)


def _shape(leaves: list[Any]) -> list[Any] | None:
    """Shapes, dtypes and devices of a batch; None for a batch that contains other than dense tensors."""
    shape: list[Any] = []
    for t in leaves:
        if t is not None and not (isinstance(t, Tensor) and t.layout is torch.strided and not t.requires_grad):
            return None
        shape.append(None if t is None else (t.shape, t.dtype, t.device))
    return shape


def _vmappable(work: Work) -> bool:
    """Whether the model computes the same under vmap as without."""
    if work.replicas.groups or modes.compiled(work.model) or modes.captured(work.model):
        return False
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in work.params):  # vmap would not call the hooks
        return False
    modules = modes.modules_of(work.model)
    return not any(m._backward_hooks or m._backward_pre_hooks for m in modules) and all(
        type(m).forward is _BatchNorm.forward and "forward" not in vars(m) and m.num_batches_tracked is not None
        for m in filter(tracks, modules)
    )
