"""Answers several probes in one forward and backward pass on one device."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from lowland.core import checks, precision, vec
from lowland.core.errors import LossError, LowlandError, UsageError
from lowland.core.probe import Probe, Reading
from lowland.core.vec import Vec
from lowland.executors import modes
from lowland.executors.base import Executor, Work
from lowland.executors.displacement import check_displacement, move
from lowland.executors.guards import strangers
from lowland.executors.local import Local, Pass
from lowland.executors.stacked import Places, StackedLoss, tracks

# Texts in torch's messages for functions that vmap cannot run; other errors also occur without vmap.
SIGNS = ("vmap", "functorch", "atching rule", "Cannot access data pointer of Tensor")


class Batched(Executor):
    """Answers the probes of one tuple in a single forward and backward pass, by ``vmap`` over copies of the weights.

    This is faster on a device that one pass does not keep busy: two probes launch as many kernels as one, each with
    twice the data. On a device that one pass keeps busy, such as a CPU, it is not faster than :class:`Local`.

    The readings equal those of :class:`Local` up to rounding, and the weights do not move. Running statistics of
    BatchNorm are updated for the probes that ask for it, in order. One draw gives the random numbers of all probes, so
    dropout masks differ from those of :class:`Local`, except with ``rng="shared"``. The state of the global random
    numbers afterwards is that of :class:`Local`.

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
            UsageError: The loss function cannot run for several probes at once.
        """
        batch = self.batch(work, probes)
        if batch is None:
            return self._local.run(work, probes)
        seeds = work.seeds(len(probes))
        readings: list[Reading] = []
        for start in range(0, len(probes), self.width):
            here = slice(start, start + self.width)
            with modes.branch(work.device, seeds[start]):
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


@dataclass(frozen=True)
class Batch:
    """Batches of the same shapes.

    Attributes:
        spec: Their structure.
        leaves: The entries of each batch: tensors and None.
    """

    spec: Any
    leaves: list[list[Any]]

    def stacked(self) -> Vec:
        """The tensors of all batches, stacked in a new dimension 0."""
        return [torch.stack(ts) for ts in zip(*self.leaves, strict=True) if ts[0] is not None]

    def rebuilt(self, tensors: Sequence[Tensor]) -> Any:
        """A batch of this structure with these tensors."""
        rest = iter(tensors)
        return pytree.tree_unflatten([None if t is None else next(rest) for t in self.leaves[0]], self.spec)


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


def answer_together(work: Work, probes: tuple[Probe, ...], batch: Batch) -> list[Reading]:
    """The readings of probes in one pass; random numbers are the caller's."""
    loss_fn = probes[0].loss_fn or work.loss_fn
    assert loss_fn is not None
    with torch.no_grad():
        stacked = _displaced(work, probes)
        loss = StackedLoss(work.model, loss_fn, work.batches.known_size, cut=any(p.cut for p in probes))
        places = Places(work.model, work.params, len(probes))
    with _explained():
        losses = _forward(work, loss, places, stacked, batch)
        if work.first:
            known = [*stacked, *work.params]
            work.step.suspect(strangers(losses["mean"], known, work.model, loss_fn))
        vectors = _backward(work, losses["mean"].sum(), stacked)
    del stacked  # its memory becomes that of the gradients
    with torch.no_grad():
        grads = _apart(work, vectors, len(probes))
        places.update([i for i, p in enumerate(probes) if p.stats])
    trained = [p.requires_grad for p in work.params]
    reached = None if all(trained) else trained
    work.step.reach(reached)
    if reached is not None:  # frozen since the engine was made
        grads = [vec.mask(grad, reached) for grad in grads]
    # Copies, because a view would keep the memory of all probes' readings alive.
    losses = {name: t.detach() for name, t in losses.items()}
    return [
        Reading(
            losses["mean"][i].clone(),
            grad,
            losses["losses"][i].clone() if "losses" in losses else None,
            losses["count"][i].clone() if "count" in losses else loss.count,
            loss.aux(losses, i),
            reached,
        )
        for i, grad in enumerate(grads)
    ]


def _displaced(work: Work, probes: tuple[Probe, ...]) -> Vec:
    """The displaced weights of all probes, stacked in a new dimension 0; the probes' lists ``at`` are emptied."""
    params, count = [p.detach() for p in work.params], len(probes)
    if not work.forward_writes and all(probe.at is None for probe in probes):
        return [p.expand(count, *p.shape).requires_grad_() for p in params]  # views, which need no memory
    stacked = [p.new_empty(count, *p.shape) for p in params]
    for probe, weights in zip(probes, zip(*map(torch.unbind, stacked), strict=True), strict=True):
        vec.copy_(list(weights), params)
        if probe.at is not None:
            at = probe.take_at()
            check_displacement(work.params, at, each=work.step.watched, noise=probe.noise)
            move(list(weights), at, probe.noise)
            at.clear()
    return [s.requires_grad_() for s in stacked]


def _forward(work: Work, loss: StackedLoss, places: Places, stacked: Vec, batch: Batch) -> dict[str, Tensor]:
    """The results of :class:`StackedLoss` for all probes, stacked: mean losses have the shape ``(probes,)``."""
    replaced = [*stacked, *places.statistics]

    def one(*tensors: Tensor) -> tuple[Tensor, ...]:
        """The losses of one probe at its weights and on its examples."""
        example = batch.rebuilt(tensors[len(replaced) :])
        with places.replaced(tensors):
            return loss(example)

    # On a CPU, vmap would call other attention kernels once per probe.
    kernels = sdpa_kernel(SDPBackend.MATH) if work.device.type == "cpu" else nullcontext()
    try:
        with kernels, torch.enable_grad():
            run = torch.func.vmap(one, randomness="different" if work.rng is None else "same")
            return loss.named(run(*replaced, *batch.stacked()))
    finally:
        torch.clear_autocast_cache()  # its copies of the displaced weights are not needed any more


def _backward(work: Work, loss: Tensor, stacked: Vec) -> Vec:
    """The gradients of all probes, stacked, from the sum of their losses: each loss depends on its own weights only."""
    if not loss.requires_grad:
        raise LossError(
            "loss_fn must return a loss that depends on the model's trainable parameters, but the loss needs no "
            "gradient; compute it from the model's output without detach() or no_grad()"
        )
    if work.scaler is not None:
        loss = work.scaler.scale(loss)
    trained = [p for p in work.params if p.requires_grad]
    grads = torch.autograd.grad(loss, [*stacked, *trained], allow_unused=True)
    if any(g is not None for g in grads[len(stacked) :]):
        raise UsageError(
            "loss_fn must take parameters from the model it is given, at every call anew, but uses some that it, or a "
            "module, has kept, and which Batched cannot displace; use executor=Local()"
        )
    return [torch.zeros_like(s) if g is None else g for g, s in zip(grads, stacked, strict=False)]


def _apart(work: Work, vectors: Vec, count: int) -> list[Vec]:
    """Each probe's gradient in its own memory with the parameters' memory format, divided by the loss scale."""
    scale = work.scale()
    if scale is not None:
        work.step.check(vec.finite(vectors))
    like = [(p, precision.of_vectors(p.dtype)) for p in work.params]
    if all(g.is_cpu and g.dtype == t and p.is_contiguous() for g, (p, t) in zip(vectors, like, strict=True)):
        grads = list(map(list, zip(*map(torch.unbind_copy, vectors), strict=True)))  # half the time of the general way
    else:
        grads = [[torch.empty_like(p, dtype=dtype) for p, dtype in like] for _ in range(count)]
        for grad, own in zip(grads, zip(*map(torch.unbind, vectors), strict=True), strict=True):
            vec.copy_(grad, list(own))
    if scale is not None:
        for grad in grads:
            vec.div_(grad, scale)
    return grads


@contextmanager
def _explained() -> Iterator[None]:
    """Replace torch's error for a loss that vmap cannot run by a UsageError with a remedy."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, LowlandError):
            raise
        if any(sign in str(error) for sign in SIGNS):
            raise UsageError(
                "loss_fn must run under torch.func.vmap with Batched, without .item(), `if` on a tensor, masks that "
                f"change shapes, or checkpointing, but torch says: {error}; use executor=Local()"
            ) from error
        error.add_note("Batched ran loss_fn under torch.func.vmap; executor=Local() runs it as it is")
        raise
