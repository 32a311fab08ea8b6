"""SAM on the examples with the largest losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lowland.core import batch as batches
from lowland.core import checks
from lowland.core.probe import Plan, Probe
from lowland.methods.base import Perturbing

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class KSAM(Perturbing):
    """Both gradients of SAM are taken on the k examples of the batch with the largest losses.

    ``S = the k largest of losses(w; B)``, ``d = g(w + rho * g/||g||; S)`` with ``g = g(w; S)``

    Args:
        rho: Radius, >= 0, in parameter norm.
        geometry: How the gradient becomes a displacement.
        ascent_gradient: "mean" over the ranks, or each rank's own ("local"); see :class:`SAM`.
        k: A number in (0, 1] is a fraction of the batch, an integer >= 1 a count of examples.

    Cost: 2k/B gradients per step, one after the other, and 1 forward pass on the full batch; 1 P of memory; 2
    all-reduces of P under data parallelism, 1 with ``ascent_gradient="local"``. With k = 1/3 this is about the cost of
    plain training.

    Differs: No code is released; the rule is from the abstract, the default of k is lowland's. The loss function must
    return one loss per example. Under data parallelism each device takes the largest losses of its own examples.

    Invariants: k = |B| is SAM, and so is a batch of identical examples; BatchNorm sees the full batch once.

    Use: With large batches of which most examples are learned.

    Avoid: With label noise: the largest losses then belong to wrong labels, and training uses hardly any others.
    With a loss function that returns a mean.

    Reference: Ni, Chiang, Geiping, Goldblum, Wilson, Goldstein: K-SAM: Sharpness-Aware Minimization at the Speed of
    SGD. 2022, arXiv 2210.12864.
    """

    k: int | float = 0.5
    needs_batch: ClassVar[bool] = True
    whole_gradient: ClassVar[bool] = False

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        if isinstance(self.k, float):
            checks.share(
                "k", self.k, "a fraction of the batch; write a count as an integer", "0.5 takes half of the batch"
            )
        else:
            checks.integer("k", self.k, 1, "a count of examples; write a fraction of the batch as 0.5")

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        look = yield Probe(batch, grad=False)
        losses, size = self.per_example(look), engine.batches.size(batch)
        count = batches.part(self.k, size) if isinstance(self.k, float) else min(self.k, size)
        hard = batch if count == size else engine.batches.take(batch, torch.topk(losses, count).indices)
        here = yield self.probe(hard, stats=False)
        up = self.probe(hard, at=self.ascent_(engine, here.grad))
        del here
        there = yield up
        return look.loss, there.grad
