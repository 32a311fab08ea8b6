"""SAM along the noise of a batch's gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowland.core import checks, vec
from lowland.core.probe import Plan, Probe
from lowland.core.schedule import Schedule
from lowland.core.vec import Vec
from lowland.methods.base import Method

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class FriendlySAM(Method):
    """F-SAM: perturbs along the gradient of the batch minus the running mean of gradients.

    ::

        u = g - sigma * m,   e = rho * u / ||u||,   d = g(w + e),   m' = lmb * m + (1 - lmb) * g

    For a tensor without a mean, u = g and m' = g.

    Args:
        rho: Radius, >= 0, in parameter norm.
        geometry: How u becomes a displacement.
        sigma: Multiple of the mean that is subtracted, >= 0; 0 is SAM.
        lmb: Decay of the running mean, in [0, 1].

    Cost: 2 gradients per step, one after the other; 1 P of resident memory (the mean), 4 P at most (the old mean
    is kept until the step is done); 2 all-reduces of P under data parallelism. The mean gradient perturbs: the running
    mean must be the same on every rank.

    Differs: The released code's form, which removes the old mean; the paper removes the new one. For sigma = 1 the
    directions are the same, because g - m' = lmb * (g - m). With an Adam-type base nothing changes: the mean is the
    method's own, of plain gradients, not Adam's. A parameter that a batch does not
    use keeps its mean and is not perturbed. A tensor whose mean is exactly zero counts as one without a mean, so that
    its next mean is its gradient; in the release it has a mean of zeros, which moves by (1 - lmb) * g. The default
    lmb = 0.9 is that of the release's class; its training script's default is 0.95, and its run script passes 0.6.

    Invariants: sigma = 0 is SAM; the first step is a SAM step; rho = 0 is the base optimizer.

    Use: With small batches, whose gradients differ.

    Avoid: With full batches, because g is then the mean and u is rounding noise.

    Reference: Li, Zhou, He, Cheng, Huang: Friendly Sharpness-Aware Minimization. CVPR 2024, arXiv 2403.12350.
    """

    rho: float | Schedule = 0.2
    sigma: float = 1.0
    lmb: float = 0.9

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        checks.at_least("sigma", self.sigma, 0, "sigma=0 is SAM")
        checks.within("lmb", self.lmb, 0, 1, "0.9 is the release's value")

    def init(self, params: Vec) -> dict[str, Any]:
        """See :meth:`lowland.methods.base.Method.init`."""
        return {"mean": vec.zeros(params)}  # a tensor of zeros stands for none yet

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        here = yield Probe(batch)
        mean = engine.memory["mean"]
        engine.memory["mean"] = self._update(mean, here.grad, engine.reached)
        # Zero for parameters that this batch did not reach; otherwise their perturbation would be the old mean alone.
        particular = vec.mask(vec.add(here.grad, mean, -self.sigma), engine.reached)
        loss, up = here.loss, Probe(batch, at=self.ascent(engine, particular))
        del here, mean, particular
        there = yield up
        return loss, there.grad

    def _update(self, mean: Vec, g: Vec, reached: list[bool]) -> Vec:
        weights = self.lmb * (vec.norms(mean) > 0).to(g[0].dtype)  # (number of tensors,): 0 for a tensor without a mean
        updated = vec.scale(mean, self.lmb)  # a tensor without a mean is zero and stays zero
        vec.add_(updated, vec.stretch(g, 1 - weights))
        updated = vec.where(vec.finite(g), updated, mean)  # a NaN would stay in the mean forever
        return [new if r else old for new, old, r in zip(updated, mean, reached, strict=True)]
