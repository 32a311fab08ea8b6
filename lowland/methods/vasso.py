"""SAM along a moving average of gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowland.core import checks, vec
from lowland.core.probe import Plan, Probe
from lowland.core.vec import Vec
from lowland.methods.base import Method

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class VaSSO(Method):
    """Variance-suppressed SAM: perturbs along a moving average of gradients, in which a batch's noise is smaller.

    ::

        m = (1 - theta) * m + theta * g,   e = rho * m / ||m||,   d = g(w + e)

    For a tensor without an average, m = g.

    Args:
        rho: Radius, >= 0, in parameter norm.
        geometry: How m becomes a displacement.
        theta: Weight of the new gradient in the average, in (0, 1]; 1 is SAM.

    Cost: 2 gradients per step, one after the other; 1 P of resident memory (the average), 4 P at most (the old average
    is kept until the step is done); 2 all-reduces of P under data parallelism. The mean gradient perturbs: the average
    must be the same on every rank.

    Differs: The release adds 1e-7 to the norm, here it is 1e-12. A parameter that a batch does not use keeps its
    average and is not perturbed. A tensor whose average is exactly zero counts as one without an average, so that its
    next average is its gradient; in the release it has an average of zeros, which moves by theta * g. The release
    updates BatchNorm statistics in both passes; here only the first pass does. The defaults are those of the release;
    its training script passes rho = 0.2.

    Invariants: theta = 1 is SAM; the first step is a SAM step; with equal batches at weights that stand still it is
    SAM; rho = 0 is the base optimizer.

    Use: With small batches, whose gradients differ.

    Avoid: With a small theta while the weights move far: the average is then of gradients elsewhere.

    Reference: Li, Giannakis: Enhancing Sharpness-Aware Optimization Through Variance Suppression. NeurIPS 2023,
    arXiv 2309.15639.
    """

    theta: float = 0.9

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        checks.share("theta", self.theta, "1 is SAM", "0 would keep the first gradient for ever, 0.9 is usual")

    def init(self, params: Vec) -> dict[str, Any]:
        """See :meth:`lowland.methods.base.Method.init`."""
        return {"mean": vec.zeros(params)}  # a tensor of zeros stands for none yet

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        here = yield Probe(batch)
        mean = self._update(engine.memory["mean"], here.grad)
        engine.memory["mean"] = self._kept(engine.memory["mean"], mean, here.grad, engine.reached)
        # Zero for parameters that this batch did not reach; otherwise their old average would perturb them.
        e = self.ascent(engine, vec.mask(mean, engine.reached))
        loss, up = here.loss, Probe(batch, at=e)
        del here, mean, e
        there = yield up
        return loss, there.grad

    def _update(self, mean: Vec, g: Vec) -> Vec:
        known = (vec.norms(mean) > 0).to(g[0].dtype)  # (number of tensors,): 0 for a tensor without an average
        updated = vec.scale(mean, 1 - self.theta)  # a tensor without an average is zero and stays zero
        vec.add_(updated, vec.stretch(g, 1 - known * (1 - self.theta)))
        return updated

    def _kept(self, mean: Vec, updated: Vec, g: Vec, reached: list[bool]) -> Vec:
        """The average for the next step: the old one if the gradient is not finite, in which a NaN would stay."""
        kept = vec.where(vec.finite(g), updated, mean)
        return [new if r else old for new, old, r in zip(kept, mean, reached, strict=True)]
