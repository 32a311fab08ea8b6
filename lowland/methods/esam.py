"""SAM with a random part of the perturbation and the most sensitive examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from lowland.core import batch as batches
from lowland.core import checks, shards, vec
from lowland.core.errors import ArgumentError
from lowland.core.probe import Plan, Probe
from lowland.core.vec import Vec
from lowland.methods.base import Perturbing

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class ESAM(Perturbing):
    """Efficient SAM: it perturbs random weights, and descends on the examples whose losses rise most.

    ::

        e = rho / beta * m * g/||g||             m keeps each tensor (or each weight) with probability beta
        S = the gamma * |B| examples with the largest  loss_i(w + e) - loss_i(w)
        d = g(w + e; S)

    Args:
        rho: Radius, >= 0, in parameter norm.
        geometry: How the gradient becomes a displacement, before the factor 1/beta.
        ascent_gradient: "mean" over the ranks, or each rank's own ("local"); see :class:`SAM`.
        beta: Fraction of the tensors (or weights) that are perturbed, in (0, 1].
        gamma: Fraction of the examples in the second pass, in (0, 1]; rounded down, at least one example.
        mask: "tensor" draws tensors before the first pass, which computes the gradient and the norm of these tensors
            only; "element" draws single weights, as in the paper, which saves no work.

    Cost: 1 + gamma gradients per step, one after the other, and 1 forward pass; the first gradient is for a fraction
    beta of the tensors; 1 P of memory, 2 P in the forward pass; 2 all-reduces of P under data parallelism, the first
    of the drawn tensors; 1 with ``ascent_gradient="local"``.

    Differs: Masks by tensor are the release's, masks by element the paper's. The release keeps the examples strictly
    above the threshold, one fewer than the paper; here it is the paper's number. The release updates BatchNorm
    statistics in all three passes, here only the first pass does. With gamma = 1 there is no forward pass. With
    dropout, the two losses of an example have different masks, unless ``rng="shared"``. The release's first step
    differentiates and perturbs all tensors; here the first step has a mask like all others. The release adds 1e-7 to
    the norm, here it is 1e-12. Under data parallelism each device takes the most sensitive of its own examples, as the
    release does; the release's devices also perturb by their own gradients: ``ascent_gradient="local"``.

    Invariants: beta = gamma = 1 is SAM; with gamma < 1 exactly floor(gamma * |B|) examples are descended on.

    Use: For large models whose backward pass dominates.

    Avoid: Because of its published speed alone: an independent comparison found it slower than its claim, and less
    accurate than Momentum-SAM and LookSAM (arXiv 2401.12033, table 1). With a loss function that returns a mean.

    Reference: Du, Yan, Feng, Zhou, Zhen, Goh, Tan: Efficient Sharpness-aware Minimization for Improved Training of
    Neural Networks. ICLR 2022, arXiv 2110.03141.
    """

    beta: float = 0.6
    gamma: float = 0.5
    mask: Literal["tensor", "element"] = "tensor"
    needs_batch: ClassVar[bool] = True
    whole_gradient: ClassVar[bool] = False

    @property
    def synchronized(self) -> bool:  # type: ignore[override]
        """True with the mean over the ranks, if the first gradient is of all tensors."""
        return super().synchronized and (self.mask == "element" or self.beta == 1)

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        for name in ("beta", "gamma"):
            checks.share(name, getattr(self, name), "1 keeps all", "it is the fraction that is kept")
        checks.one_of("mask", self.mask, ("tensor", "element"))

    def validate(self, engine: Engine) -> None:
        """See :meth:`lowland.methods.base.Method.validate`."""
        if self.mask == "element" and not shards.ordinary(engine.params):
            raise ArgumentError(
                "mask must be 'tensor' where parameters are sharded, but is 'element', whose draw would depend on the "
                "number of ranks; use ESAM(mask='tensor')"
            )

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        here = yield self.probe(batch, wrt=self._tensors(engine))
        e, loss = self._displacement(engine, here.grad), here.loss
        before, hard = self.per_example(here) if self.gamma < 1 else here.loss, batch
        del here
        if self.gamma < 1:
            look = yield Probe(batch, at=e, grad=False)
            count = batches.part(self.gamma, engine.batches.size(batch))
            hard = engine.batches.take(batch, torch.topk(self.per_example(look) - before, count).indices)
        up = self.probe(hard, at=e)
        del e
        there = yield up
        return loss, there.grad

    def _tensors(self, engine: Engine) -> list[bool] | None:
        """Draw the tensors that are differentiated and perturbed, at least one; None means all."""
        if self.mask == "element" or self.beta == 1:
            return None
        keep = [False]
        while not any(keep):
            keep = [engine.rng.random() < self.beta for _ in engine.params]
        return keep

    def _displacement(self, engine: Engine, grad: Vec) -> Vec:
        e = vec.scale(self.ascent(engine, grad), 1 / self.beta)
        if self.mask == "tensor":
            return e
        generator = self.generator(engine)
        return vec.mul(e, [torch.empty_like(t).bernoulli_(self.beta, generator=generator) for t in e])
