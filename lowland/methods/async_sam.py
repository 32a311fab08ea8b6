"""SAM whose ascent gradient is one step old and comes from a smaller batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lowland.core import batch as batches
from lowland.core import checks, vec
from lowland.core.probe import Plan, Probe
from lowland.core.vec import Vec
from lowland.methods.base import Method

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class AsyncSAM(Method):
    """The ascent gradient of the step before displaces the weights; the next ascent gradient is computed in parallel.

    ::

        d   = g(w + rho * a/||a||; B)
        a'  = g(w; A)         A the first part of B, for the next step

    The two do not depend on each other, so a second, weaker device can compute a' while the first one computes d.

    Args:
        rho: Radius, >= 0, in parameter norm.
        geometry: How a becomes a displacement.
        share: Size of A as a fraction of the batch, in (0, 1]; choose it so that both devices finish at the same time.
        tau: Age of the ascent gradient in steps: 1; or 0 to compute it first, without parallelism.

    Cost: 1 + share gradients per step, of which 1 on the critical path (tau=0: 1 + share); 1 P of resident memory, 3 P
    at most; 2 all-reduces of P under data parallelism, at the same time. The mean gradient perturbs, because a is kept
    and must be the same on every rank.

    Differs: The rule is read from summaries of the paper. They do not say which examples are in A; here A is the first
    ones of each batch. The first step has no displacement. BatchNorm statistics come from the displaced pass
    (``refresh_stats`` recomputes them).

    Invariants: share = 1 with tau = 0 is SAM; the first step is the base optimizer's; rho = 0 is the base optimizer.

    Use: With a second device that is weaker than the first. ``backward`` returns the loss at the displaced weights.

    Avoid: On one device, where it costs 1 + share times plain training. If successive gradients have little in
    common, because the displacement is then random.

    Reference: Jo, Lim, Lee: Asynchronous Sharpness-Aware Minimization For Fast and Accurate Deep Learning. 2025,
    arXiv 2503.11147.
    """

    share: float = 0.25
    tau: int = 1
    needs_batch: ClassVar[bool] = True
    whole_gradient: ClassVar[bool] = False

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        checks.share("share", self.share, "0.25 is a quarter of the batch", "Plain() takes no ascent gradient at all")
        checks.one_of("tau", self.tau, (0, 1))

    def init(self, params: Vec) -> dict[str, Any]:
        """See :meth:`lowland.methods.base.Method.init`."""
        return {"stale": vec.zeros(params)} if self.tau else {}

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        count = batches.part(self.share, engine.batches.size(batch))
        ascent_probe = Probe(engine.batches.head(batch, count), stats=False)
        if self.tau == 0:
            ascent = yield ascent_probe
            there = yield Probe(batch, at=self.ascent(engine, ascent.grad), stats=True)
            return there.loss, there.grad
        descent = Probe(batch, at=self.ascent_later(engine, engine.memory["stale"]), stats=True)
        there, ascent = yield descent, ascent_probe
        vec.zero_unless_(vec.finite(ascent.grad), ascent.grad)  # NaN is not reused
        engine.memory["stale"] = ascent.grad
        return there.loss, there.grad
