"""SAM that also closes the gap between the two losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowland.core import checks, vec
from lowland.core.probe import Plan
from lowland.methods.base import Perturbing

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class GSAM(Perturbing):
    """SAM's gradient minus a part of the plain gradient orthogonal to it: it lowers the perturbed loss and the gap.

    ``d = g_s - alpha * (g - proj_{g_s} g)`` with ``g_s = g(w + rho * g/||g||)``

    Args:
        rho: Radius, >= 0, in parameter norm. The paper lets it follow the learning rate:
            ``GSAM(rho=schedule.follow_lr(0.05, 0.0, lr_high=0.1))``, as the command line's recipes do.
        geometry: How the gradient becomes a displacement.
        ascent_gradient: "mean" over the ranks, or each rank's own ("local"); see :class:`SAM`.
        alpha: Weight of the orthogonal part, >= 0; 0 is SAM.

    Cost: 2 gradients per step, one after the other; 2 P of memory during the second pass (saved weights and g); 2
    all-reduces of P under data parallelism, 1 with ``ascent_gradient="local"``.

    Differs: No difference in the rule on one device. A constant radius is allowed. ``schedule.follow_lr`` keeps the
    radius between its two ends if the learning rate leaves the given range; the releases extrapolate. Under data
    parallelism the mean gradient perturbs; both releases perturb each rank by its own gradient, decompose there, and
    average the results: ``ascent_gradient="local"``.

    Invariants: alpha = 0 is SAM; d - g_s is orthogonal to g_s; rho = 0 is the base optimizer.

    Use: Instead of SAM, at the same cost.

    Avoid: With a large alpha on noisy gradients, because the orthogonal part that it subtracts is then mostly
    noise.

    Reference: Zhuang, Gong, Yuan, Cui, Adam, Dvornek, Tatikonda, Duncan, Liu: Surrogate Gap Minimization Improves
    Sharpness-Aware Training. ICLR 2022, arXiv 2203.08065.
    """

    alpha: float = 0.4

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        checks.at_least("alpha", self.alpha, 0, "alpha=0 is SAM")

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        here = yield self.probe(batch)
        there = yield self.probe(batch, at=self.ascent(engine, here.grad))
        loss, rest = here.loss, vec.together(vec.reject, here.grad, there.grad)
        del here  # before another vector is made
        return loss, vec.add(there.grad, rest, -self.alpha)
