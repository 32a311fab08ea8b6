"""SAM at the price of plain training: the momentum gives the perturbation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lowland.core import vec
from lowland.core.probe import Plan, Probe
from lowland.core.schedule import Schedule
from lowland.methods.base import Method

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class MomentumSAM(Method):
    """One gradient per step, at a point displaced against the base optimizer's momentum.

    ``d = g(w - rho * v/||v||)`` with v the momentum before this step. Momentum adds up gradients, and the optimizer
    moves along -v; so the displacement points ahead, to where the optimizer is going, not uphill.

    With SGD, v is its momentum buffer (weight decay included, as torch keeps it). With Adam and AdamW, v is the first
    moment ``exp_avg``, without bias correction: a factor that would cancel. Without a buffer yet, on the first step,
    nothing is displaced. SGD without momentum and other optimizers are refused.

    Args:
        rho: Radius, >= 0, in parameter norm. The release takes 3 for CIFAR-100 and 0.3 for ImageNet; the momentum is a
            blunt direction, so a larger radius than SAM's does no harm. For vision transformers the release takes 0
            before epoch 8 and 10 from then on: ``Late(inner=MomentumSAM(rho=10), start=…)``, in steps.
        geometry: How v becomes a displacement.

    Cost: 1 gradient per step; 1 P of memory (the saved weights), 2 P while the direction is made; 1 all-reduce of P
    under data parallelism. Every rank is perturbed alike: the momentum is the mean gradient's.

    Differs: The release keeps the displaced weights live between steps, which needs no memory, and recomputes
    BatchNorm statistics before evaluation; here weights never stay displaced, at 1 P, and statistics are those of the
    displaced pass (``refresh_stats`` recomputes them). The release differentiates the L2 penalty at the displaced
    weights; here weight decay is the base optimizer's. The release's AdamW decays the weights after Adam's move,
    torch's AdamW before it.

    Invariants: The first step is the base optimizer's; rho = 0 is the base optimizer; the efficient form of the paper
    has the same trajectory.

    Use: Where the second gradient cannot be paid: the cheapest of all. Not with SGD without momentum. The loss that
    ``backward`` returns is that of the displaced weights.

    Reference: Becker, Altrock, Risse: Momentum-SAM: Sharpness Aware Minimization without Computational Overhead.
    NeurIPS 2025, arXiv 2401.12033.
    """

    rho: float | Schedule = 3.0
    whole_gradient: ClassVar[bool] = False

    def validate(self, engine: Engine) -> None:
        """See :meth:`lowland.methods.base.Method.validate`."""
        engine.momentum()  # refuses an optimizer that has none

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        ahead = vec.scale(self.ascent(engine, engine.momentum()), -1.0)
        probe = Probe(batch, at=ahead, stats=True)
        del ahead
        there = yield probe
        return there.loss, there.grad
