"""SAM whose radius follows from a budget of loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowland.core import checks, vec
from lowland.core.probe import Plan
from lowland.core.schedule import Schedule
from lowland.methods.base import Perturbing

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class LESAM(Perturbing):
    """Loss-equated SAM: the perturbation raises the linearized loss by sigma, instead of having a fixed length.

    ``rho_t = min(sigma / ||g||, rho)``, ``d = g(w + rho_t * g/||g||)``

    Where the gradient is small, the perturbation is long, up to ``rho``; where it is large, the perturbation is short.

    Args:
        rho: The largest radius, >= 0, in parameter norm; a number or a schedule. A parameter group's own ``"rho"``
            overrides it.
        geometry: How the gradient becomes a displacement of radius rho, which is then shortened.
        ascent_gradient: "mean" over the ranks, or each rank's own ("local"); see :class:`SAM`.
        sigma: The budget, >= 0, in units of the loss: the rise ``<g, e>`` of the linearized loss; a number or a
            schedule.

    Cost: 2 gradients per step, one after the other; 1 P of memory during the passes, 2 P while the displacement is
    computed; 2 all-reduces of P under data parallelism, 1 with ``ascent_gradient="local"``.

    Differs: The release raises sigma linearly over the first 10 epochs and lowers it to 0 along a cosine in epochs 160
    to 200; here sigma is constant, unless it is a schedule, such as ``schedule.linear(0.0, 0.35, steps=0.05)`` for the
    warm-up. The defaults are the values at which the release's script sets out; its README has rho = 999 with sigma =
    0.35, which is no limit. The release's norm is ``sqrt(||g||^2 + 1e-12)``. With other geometries than L2, and with
    radii of groups, lowland shortens the displacement of radius rho until ``<g, e> <= sigma``, which is the release's
    rule for L2; the release's ``adaptive`` divides by ``|| |w| g ||`` instead. Its training on the largest losses only
    and its subtraction of a part of g, both switched off there, are left out.

    Invariants: sigma = 0 and rho = 0 are the base optimizer; with a large sigma it is SAM; with a large rho a loss that
    is scaled by c, together with sigma, has the same perturbation.

    Use: If the norm of the gradient changes much during training, so that no one radius suits all of it.

    Avoid: Without a limit near a minimum, where ``sigma / ||g||`` grows without bound. A sigma that suited one loss
    suits no loss of another scale.

    Reference: Wang, Liu, Xie, Gao: Fix the Loss, Not the Radius: Rethinking the Adversarial Perturbation of
    Sharpness-Aware Minimization. ICML 2026, arXiv 2605.10183.
    """

    rho: float | Schedule = 0.3
    sigma: float | Schedule = 0.35

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        if not isinstance(self.sigma, Schedule):
            checks.at_least("sigma", self.sigma, 0, "sigma=0 leaves the plain gradient")

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        here = yield self.probe(batch)
        e = self.ascent(engine, here.grad)
        rise = vec.dot(here.grad, e)
        vec.scale_(e, (engine.scheduled(self.sigma) / (rise + vec.TINY)).clamp_(max=1.0))
        loss, up = here.loss, self.probe(batch, at=e)
        del here, e
        there = yield up
        return loss, there.grad
