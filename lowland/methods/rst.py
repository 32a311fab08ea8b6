"""SAM at random steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowland.core import checks
from lowland.core.probe import Plan
from lowland.methods.base import Perturbing
from lowland.methods.plain import Plain
from lowland.methods.sam import SAM

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class RST(Perturbing):
    """Randomized sharpness-aware training: each step is a SAM step with probability s, else a plain step.

    Args:
        rho: Radius, >= 0, in parameter norm.
        geometry: How the gradient becomes a displacement.
        ascent_gradient: "mean" over the ranks, or each rank's own ("local"); see :class:`SAM`.
        s: Probability of a SAM step, in [0, 1].

    Cost: 1 + s gradients per step on average, one after the other; 1 P of memory in a SAM step; 1 + s all-reduces of P
    under data parallelism, 1 with ``ascent_gradient="local"``.

    Differs: No difference in the rule. The draw uses the engine's random numbers, so it is the same on every rank
    and after a resume.

    Invariants: s = 1 is SAM, s = 0 the base optimizer.

    Use: As the baseline of methods that choose their SAM steps adaptively.

    Avoid: If all steps must take equal time.

    Reference: Zhao, Zhang, Hu: Randomized Sharpness-Aware Training for Boosting Computational Efficiency in Deep
    Learning. 2022, arXiv 2203.09962.
    """

    s: float = 0.5

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        checks.within("s", self.s, 0, 1, "1 is SAM, 0 the base optimizer")

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        sharp = engine.rng.random() < self.s
        method = self._sam() if sharp else Plain()
        return (yield from method.plan(engine, batch))

    def _sam(self) -> SAM:
        return SAM(rho=self.rho, geometry=self.geometry, ascent_gradient=self.ascent_gradient)
