"""Sharpness as the rise of the loss one ascent step away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core import checks, precision
from lowland.core.batch import Batches
from lowland.core.cutting import Cutter
from lowland.core.errors import ArgumentError, ParameterError
from lowland.core.geometry import L2
from lowland.core.loss import LossFn
from lowland.core.probe import Probe
from lowland.core.transfer import scalar
from lowland.core.vec import Vec
from lowland.executors import Local, Work


def m_sharpness(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Iterable[Any],
    *,
    rho: float = 0.05,
    m: int = 128,
    cut: Cutter | None = None,
) -> Tensor:
    """The m-sharpness: the mean rise of the loss when each micro-batch moves the weights along its own gradient.

    This is the mean over micro-batches S of ``L_S(w + rho * g_S / ||g_S||) - L_S(w)``, with ``g_S`` the gradient of
    L_S. The function evaluates the model in evaluation mode (BatchNorm's running statistics, no dropout), and restores
    weights, ``.grad``, statistics and modes bit for bit.

    Args:
        model: The model, with the weights to evaluate.
        loss_fn: ``(model, batch) -> (B,) or Loss``; a mean, ``()``, only if no batch has more than m examples.
        batches: Batches to cut; each ends with a smaller micro-batch if m does not divide it. Micro-batches
            are weighted by their size, or by the count of their ``Loss``.
        rho: Radius of the ascent step, >= 0, in parameter norm.
        m: Examples in a micro-batch, >= 1. Sharpness grows as m falls, so compare only equal m and rho.
        cut: The object that cuts batches, as for :class:`lowland.Engine`; by default tensors along dimension 0.

    Returns:
        The mean rise, shape ``()``, on the model's device.

    Cost: One gradient and two forward passes over the batches; 2 P of memory beside the gradient.

    Reference: Foret, Kleiner, Mobahi, Neyshabur: Sharpness-Aware Minimization for Efficiently Improving
    Generalization. ICLR 2021, arXiv 2010.01412, section 4.2 (m-sharpness).
    """
    checks.at_least("rho", rho, 0, "0.05 is usual")
    checks.integer("m", m, 1, "128 is usual")
    params: Vec = [p for p in model.parameters() if p.requires_grad]
    if precision.is_low(params):
        raise ParameterError(
            "parameters must be fp32 or fp64 for a sharpness, but some are in bf16 or fp16, in which a displacement is "
            "rounded; measure a copy: copy.deepcopy(model).float()"
        )
    splitter = Batches(cut)
    work = Work(model, params, loss_fn=loss_fn, batches=splitter, scaler=None, micro_batch=None, rng="free")
    executor, geometry = Local(), L2()
    rises: list[Tensor] = []
    sizes: list[Tensor | float] = []
    with _set_aside(model, params), _full_precision():
        for batch in batches:
            for part in splitter.split(batch, m):
                (at_weights,) = executor.run(work, (Probe(part, cut=part is not batch),))
                perturbed = geometry.ascent(params, at_weights.grad or [], rho)
                (at_perturbed,) = executor.run(work, (Probe(part, at=perturbed, grad=False, cut=part is not batch),))
                rises.append(at_perturbed.loss - at_weights.loss)
                sizes.append(
                    at_weights.divisor if isinstance(at_weights.divisor, Tensor) else float(splitter.size(part))
                )
    if not rises:
        raise ArgumentError("batches must hold at least one batch, but are empty; pass training examples")
    weights = torch.stack([scalar(n, rises[0].dtype, rises[0].device) for n in sizes])
    weights = weights / weights.sum()
    return (torch.stack(rises) * weights).sum()


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
