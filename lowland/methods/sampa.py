"""SAM with its two gradients side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lowland.core import batch as batches
from lowland.core import checks, vec
from lowland.core.probe import Plan, Probe
from lowland.core.vec import Vec
from lowland.methods.base import Method

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class SAMPa(Method):
    """SAM whose two gradients do not depend on each other, so that two devices can compute them at the same time.

    An auxiliary point y is ahead of the weights: the point that the base optimizer would reach with the gradient at
    the last y. The gradient at y is known when a step begins and gives the ascent direction::

        x~      = x + rho * g(y; B) / ||g(y; B)||
        y'      = x + (the base optimizer's step for g(y; B))
        d       = (1 - lam) * g(x~; B) + lam * g(y'; B')

    B is the batch kept from the last step and B' the new one. Every batch is used twice; the ascent and the descent of
    a SAM step use the same batch. In the first step both gradients are at x, so it is a step of the base optimizer.

    Args:
        rho: Radius, >= 0, in parameter norm; the release uses 0.1 where SAM takes 0.05.
        geometry: How the gradient at y becomes a displacement.
        lam: Weight of the gradient at y', in [0, 1]: 0 is SAMPa-0, 1 is optimistic gradient descent.
        lookahead: "base" computes the base optimizer's next step, with momentum, weight decay and preconditioning;
            "raw" takes ``y' = x - lr * g(y)``.

    Cost: 2 gradients per step, at the same time; 1 P and a batch of resident memory, 3 P during the passes on one
    device; one exchange of P between two device groups. Under data parallelism the mean gradient perturbs, because
    g(y) is kept and must be the same on every rank.

    Differs: The release includes momentum and weight decay in the lookahead for SGD only, omits weight decay until a
    momentum buffer exists, and uses the raw step for other optimizers; "base" is exact for the step of all optimizers.
    What the training loop does to ``.grad`` before it, such as clipping, is not in it; hooks of the optimizer and
    unknown wrappers, which may do as much, are refused. The release recovers g(y) by dividing by lam, which fails at
    lam = 0; here both gradients are kept. BatchNorm statistics come from y', the point to which the weights move, not
    from x~.

    Invariants: The first step is the base optimizer's, for any lam; lam = 1 does not depend on rho; on a convex smooth
    loss with lam = 0 and a small constant step, ``f(x) + 1/2 (1 - lr L) ||g(x) - g(y)||^2`` does not rise by more than
    a term in lr^2 rho^2.

    Use: With two devices, if half a batch takes more than half the time of a batch. Measure it against
    data-parallel SAM on the same two devices.

    Avoid: On one busy device, where it costs as much as SAM. Behind a closure, from which it cannot get the batch
    that it keeps.

    Reference: Xie, Pethick, Cevher: SAMPa: Sharpness-Aware Minimization Parallelized. NeurIPS 2024,
    arXiv 2410.10683.
    """

    rho: float = 0.1
    lam: float = 0.2
    lookahead: Literal["base", "raw"] = "base"
    needs_batch: ClassVar[bool] = True
    whole_gradient: ClassVar[bool] = False

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        checks.within("lam", self.lam, 0, 1, "0 is SAMPa-0 and 1 is optimistic gradient descent")
        checks.one_of("lookahead", self.lookahead, ("base", "raw"))

    def init(self, params: Vec) -> dict[str, Any]:
        """See :meth:`lowland.methods.base.Method.init`."""
        return {"grad_y": vec.zeros(params), "batch": None, "missed": []}

    def validate(self, engine: Engine) -> None:
        """See :meth:`lowland.methods.base.Method.validate`."""
        if self.lookahead == "base":
            engine.lookahead_later(vec.zeros(engine.params))  # refuses an optimizer without a lookahead

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        grad_y, kept_batch = engine.memory["grad_y"], engine.memory["batch"]
        cold = kept_batch is None
        missed = set(engine.memory["missed"])
        among = [n not in missed for n in engine.names] if missed else None
        raw = self.lookahead == "raw"
        # The displacements have no names here, so that the executor can free them.
        tilde, at_y = yield (
            Probe(batch if cold else kept_batch, at=None if cold else self.ascent_later(engine, grad_y), stats=False),
            Probe(batch, at=None if cold else engine.lookahead_later(grad_y, raw=raw, among=among), stats=True),
        )
        loss, d, grad_y = at_y.loss, tilde.grad, at_y.grad
        vec.lerp_(d, grad_y, self.lam)
        # NaN becomes zero, which is a cold start, for a caller who skips this step. The batch is a copy, because a
        # loader may refill its buffers.
        vec.zero_unless_(vec.finite(grad_y), grad_y)
        # The names of the parameters that the batch did not reach; the optimizer does not move them.
        missed_now = [n for n, r in zip(engine.names, at_y.reached or (), strict=False) if not r]
        engine.memory.update(grad_y=grad_y, missed=missed_now, batch=engine.batches.copy(batch))
        return loss, d

    def reshard(self, shares: Sequence[dict[str, Any]], number: int, count: int) -> dict[str, Any]:
        """Concatenate the kept batches and cut them again; see :meth:`lowland.methods.base.Method.reshard`."""
        others = [{k: v for k, v in memory.items() if k != "batch"} for memory in shares]
        kept_batches = [memory["batch"] for memory in shares]
        return super().reshard(others, number, count) | {"batch": batches.rejoined(kept_batches, number, count)}

    def fallback(self, memory: dict[str, Any]) -> dict[str, Any]:
        """A cold start with a zero gradient, because the old gradient does not belong to the kept batch."""
        return {**memory, "grad_y": vec.zeros(memory["grad_y"])}
