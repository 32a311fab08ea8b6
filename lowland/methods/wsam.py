"""The plain loss plus a weighted sharpness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowland.core import checks, vec
from lowland.core.errors import ArgumentError
from lowland.core.probe import Plan
from lowland.methods.base import Perturbing

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class WSAM(Perturbing):
    """The gradient of the loss plus a multiple of the gradient of the sharpness, the rise of the loss in the ball.

    ``d = (1 - a) * g + a * g_s`` with ``a = gamma / (1 - gamma)`` and ``g_s = g(w + rho * g/||g||)``

    Args:
        rho: Radius, >= 0, in parameter norm.
        geometry: How the gradient becomes a displacement.
        ascent_gradient: "mean" over the ranks, or each rank's own ("local"); see :class:`SAM`.
        gamma: Weight of the sharpness, in [0, 1): 0 is the base optimizer, 0.5 is SAM, 0.9 counts it nine times.

    Cost: 2 gradients per step, one after the other; 2 P of memory during the second pass (saved weights and g); 2
    all-reduces of P under data parallelism, 1 with ``ascent_gradient="local"``.

    Differs: This is the coupled form; the release's default is the decoupled form, which steps with g and then moves
    the weights by ``-lr * a * (g_s - g)`` without the optimizer. lowland does not have it, because it is not one
    gradient, so clipping, scaling and momentum could not be the optimizer's. For SGD without momentum the two forms
    are equal. Under data parallelism the release perturbs each rank by its own gradient: ``ascent_gradient="local"``.

    Invariants: gamma = 0.5 is SAM; gamma = 0 and rho = 0 are the base optimizer.

    Use: To weight flatness against fit by one number.

    Avoid: With gamma near 1 and a large radius, because the step is then a magnified difference of two gradients.

    Reference: Yue, Jiang, Ye, Gao, Liu, Zhang: Sharpness-Aware Minimization Revisited: Weighted Sharpness as a
    Regularization Term. KDD 2023, arXiv 2305.15817.
    """

    gamma: float = 0.9

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        checks.within("gamma", self.gamma, 0, 1, "0.5 is SAM")
        if self.gamma == 1:
            raise ArgumentError("gamma must be < 1, but is 1, which leaves no loss beside the sharpness; 0.9 is usual")

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        here = yield self.probe(batch)
        there = yield self.probe(batch, at=self.ascent(engine, here.grad))
        return here.loss, vec.lerp(here.grad, there.grad, self.gamma / (1 - self.gamma))
