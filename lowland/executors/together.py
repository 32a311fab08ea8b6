"""The readings of several probes from one forward and backward pass, by ``vmap`` over copies of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from lowland.core import precision, vec
from lowland.core.errors import LossError, LowlandError, UsageError
from lowland.core.probe import Probe, Reading
from lowland.core.vec import Vec
from lowland.executors.base import Work
from lowland.executors.displacement import check_displacement, move
from lowland.executors.guards import strangers
from lowland.executors.stacked import Places, StackedLoss
from lowland.executors.witness import KEPT, Witness, refuse_padding

# Texts in torch's messages for functions that vmap cannot run; other errors also occur without vmap.
SIGNS = ("vmap", "functorch", "atching rule", "Cannot access data pointer of Tensor")


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


def answer_together(
    work: Work, probes: tuple[Probe, ...], batch: Batch, witness: Witness | None = None
) -> list[Reading]:
    """The readings of probes in one pass; random numbers are the caller's.

    Args:
        work: The model and the step.
        probes: The probes.
        batch: Their batches.
        witness: Watches what forward and loss call.

    Raises:
        LossError: The loss function returns no valid loss.
        UsageError: The loss function cannot run for several probes at once, or writes weights.
    """
    loss_fn = probes[0].loss_fn or work.loss_fn
    assert loss_fn is not None
    for probe in probes:
        work.examples.before_pass(probe.batch)
    with torch.no_grad():
        stacked = _displaced(work, probes, copies=witness is not None)
        loss = StackedLoss(work.model, loss_fn, work.batches.known_size, cut=any(p.cut for p in probes))
        places = Places(work.model, work.params, len(probes))
    with _explained():
        losses = _forward(work, loss, places, stacked, batch, witness)
        if witness is not None:
            refuse_padding(losses["mean"])
        if work.first:
            known = [*stacked, *work.params]
            work.step.suspect(strangers(losses["mean"], known, work.model, loss_fn))
        vectors = _backward(work, losses["mean"], stacked)
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


def _displaced(work: Work, probes: tuple[Probe, ...], *, copies: bool) -> Vec:
    """The displaced weights of all probes, stacked in a new dimension 0; the probes' lists ``at`` are emptied.

    Without displacements they are views of the weights, unless ``copies`` is true.
    """
    params, count = [p.detach() for p in work.params], len(probes)
    if not copies and all(probe.at is None for probe in probes):
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


def _forward(
    work: Work, loss: StackedLoss, places: Places, stacked: Vec, batch: Batch, witness: Witness | None
) -> dict[str, Tensor]:
    """The results of :class:`StackedLoss` for all probes, stacked: mean losses have the shape ``(probes,)``."""
    replaced = [*stacked, *places.statistics]
    versions = [s._version for s in stacked]

    def one(*tensors: Tensor) -> tuple[Tensor, ...]:
        """The losses of one probe at its weights and on its examples."""
        example = batch.rebuilt(tensors[len(replaced) :])
        with places.replaced(tensors), nullcontext() if witness is None else witness.watching(places.running()):
            return loss(example)

    # On a CPU, vmap would call other attention kernels once per probe.
    kernels = sdpa_kernel(SDPBackend.MATH) if work.device.type == "cpu" else nullcontext()
    try:
        with kernels, torch.enable_grad():
            run = torch.func.vmap(one, randomness="different" if work.rng is None else "same")
            losses = loss.named(run(*replaced, *batch.stacked()))
    finally:
        torch.clear_autocast_cache()  # its copies of the displaced weights are not needed any more
    if [s._version for s in stacked] != versions:
        raise UsageError(
            "forward and loss_fn must not write weights under Batched, as an embedding with max_norm does, because "
            "each probe has a copy of them; use executor=Local()"
        )
    return losses


@torch.enable_grad()
def _backward(work: Work, losses: Tensor, stacked: Vec) -> Vec:
    """The gradients of all probes, stacked, from the sum of their losses: each loss depends on its own weights only."""
    loss = losses.sum()
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
        raise UsageError(KEPT)
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
