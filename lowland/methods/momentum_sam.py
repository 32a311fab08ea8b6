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

    ``d = g(w - rho * v/||v||)`` with v the momentum before this step. Momentum sums gradients, and the optimizer
    moves along -v. So the displacement has the direction of the optimizer's next step, not of ascent.

    With SGD, v is its momentum buffer, which includes weight decay in torch. With Adam and AdamW, v is the first
    moment ``exp_avg``, without bias correction, because a factor would cancel. The first step has no buffer and no
    displacement. SGD without momentum and other optimizers are refused.

    Args:
        rho: Radius, >= 0, in parameter norm. The release takes 3 for CIFAR-100 and 0.3 for ImageNet. It may be larger
            than SAM's radius, because the loss rises less along the momentum than along the gradient. For vision
            transformers the release takes 0 before epoch 8 and 10 from then on:
            ``Late(inner=MomentumSAM(rho=10), start=…)``, in steps.
        geometry: How v becomes a displacement.

    Cost: 1 gradient per step; 1 P of memory (the saved weights), 2 P while the direction is made; 1 all-reduce of P
    under data parallelism. All ranks have the same perturbation, because the momentum is that of the mean gradient.

    Differs: In the release the weights stay displaced between steps, which needs no memory, and BatchNorm statistics
    are recomputed before evaluation. Here weights never stay displaced, which needs 1 P, and statistics are those of
    the displaced pass (``refresh_stats`` recomputes them). The release differentiates the L2 penalty at the displaced
    weights; here weight decay is the base optimizer's. The release's AdamW decays the weights after Adam's step,
    torch's AdamW before it.

    Invariants: The first step is the base optimizer's; rho = 0 is the base optimizer; the efficient form of the paper
    has the same trajectory.

    Use: If a second gradient is too expensive: it is the cheapest method. ``backward`` returns the loss at the
    displaced weights.

    Avoid: With SGD without momentum, which is refused. On small networks with the published radius of 3, with which
    they hardly train; the command line's recipes take 0.3 for them.

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
