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
    """The descent gradient is displaced by the ascent gradient of the step before; the next one is found meanwhile.

    ::

        d   = g(w + rho * a/||a||; B)
        a'  = g(w; A)         A the first part of B, for the next step

    The two do not depend on each other, so a second, weaker device can find a' while the first one computes d.

    Args:
        rho: Radius, >= 0, in parameter norm.
        geometry: How a becomes a displacement.
        share: Size of A as a share of the batch, in (0, 1]; made for the second device to be done in time.
        tau: Age of the ascent gradient in steps: 1, or 0 to compute it first, at the price of waiting.

    Cost: 1 + share gradients per step, of which 1 after the other (tau=0: 1 + share); 1 P of resident memory, 3 P at
    most; 2 all-reduces of P under data parallelism, the ascent's beside the descent's. The mean gradient perturbs: a is
    kept, and must be the same on every rank.

    Differs: The rule is read from summaries of the paper. Which examples are in A is not said; here the first ones of
    each batch. On the first step nothing is displaced. BatchNorm statistics come from the displaced pass
    (``refresh_stats`` recomputes them).

    Invariants: share = 1 with tau = 0 is SAM; the first step is the base optimizer's; rho = 0 is the base optimizer.

    Use: With a second device that is weaker than the first. On one device it costs share more than plain training.
    Not where successive gradients have little in common: then the displacement is a random one. The loss that
    ``backward`` returns is that of the displaced weights.

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
        ask = Probe(engine.batches.head(batch, count), stats=False)
        if self.tau == 0:
            ascent = yield ask
            there = yield Probe(batch, at=self.ascent(engine, ascent.grad), stats=True)
            return there.loss, there.grad
        descent = Probe(batch, at=self.ascent_later(engine, engine.memory["stale"]), stats=True)
        there, ascent = yield descent, ask
        engine.memory["stale"] = vec.where_true(vec.finite(ascent.grad), ascent.grad)  # NaN is not reused
        return there.loss, there.grad
