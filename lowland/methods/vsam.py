"""SAM at adaptively sampled steps, its extra gradient reused and mixed in between."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from lowland.core import checks, vec
from lowland.core.probe import Plan, Probe
from lowland.core.vec import Vec
from lowland.methods.base import Method

if TYPE_CHECKING:
    from lowland.engine import Engine

REUSES = 6  # the number of steps that reuse a refreshed psf, each with another factor beta


@dataclass(frozen=True, kw_only=True)
class VSAM(Method):
    """SAM in a number of steps per window that adapts to the variation of its extra gradient.

    The SAM gradient is the plain gradient plus ``psf = g(w + rho * g/||g||) - g``. psf is refreshed in s random steps
    of every window of K steps. Missing refreshes are made at the end of the window, so that each complete window has
    exactly ``floor(s)``. The j-th step after a refresh uses ``d = g + beta^j * psf`` for j up to 6, then ``d = g``.
    At the start of a window::

        s <- clip(s * (1 + a1 * dR + a2 * dU), 1, floor(K * p_max))

    with dR the mean relative change of ``N(psf)/N(g)`` and dU that of the variance of ``N(psf)`` within
    blocks of similar size, both clipped to [-1, 1]; N is the norm over the last few tensors.

    Args:
        rho: Radius, >= 0, in parameter norm.
        geometry: How the gradient becomes a displacement.
        window: K, steps in a window, >= 1.
        blocks: The number of blocks of sorted norms whose variances are averaged, >= 1.
        p_max: Largest fraction of a window's steps with a refresh, in [0, 1]; at least one step has a refresh.
        a1: Response of s to dR.
        a2: Response of s to dU.
        beta: Decay of psf per step, in [0, 1]; 0 alternates between SAM and the plain gradient.
        last: The number of last tensors in the norm N, >= 1.
        warmup: SAM in every step before the first window: an integer >= 0 is a number of steps, a number in (0, 1) a
            fraction of the training.

    Cost: 1 + s/K gradients per step, about 1.2 to 1.5; 1 P of resident memory, 3 P during a refresh's second pass;
    1 + s/K all-reduces of P under data parallelism. The mean gradient perturbs, because psf and the norms that set s
    must be the same on every rank.

    Differs: The norms that set s are read one refresh late, so that no step waits for the device. In the release the
    rest of the first window after the warm-up has no SAM step; here the first window starts at once. Histories start
    empty instead of with zeros. Blocks use the population variance. If the number of norms is no multiple of the
    blocks, the release omits the remainder, the largest norms; here the first blocks have one norm more. For every beta
    a refreshed psf is reused in 6 steps; in the release rounding decides, which gives 7 at beta = 0.3, 0.6 and 0.9, and
    none at beta = 1.

    Invariants: ``g + psf = g_s`` at a refresh; window = 1 and a warm-up without end are SAM; beta = 0 reuses nothing,
    so that a step is either SAM's or the base optimizer's; each complete window has exactly ``floor(s)`` refreshes,
    at least 1 and at most ``floor(K * p_max)``.

    Use: To adapt the number of second gradients to the training.

    Avoid: In trainings of a few windows, in which s hardly changes. If all steps must take equal time.

    Reference: Deng, Pang, Zhang, Wang: Effective Gradient Sample Size via Variation Estimation for
    Accelerating Sharpness-Aware Minimization. 2024, arXiv 2403.08821.
    """

    window: int = 50
    blocks: int = 5
    p_max: float = 0.8
    a1: float = 0.13
    a2: float = 0.13
    beta: float = 0.7
    last: int = 10
    warmup: int | float = 0

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        checks.integer("window", self.window, 1, "50 is the release's value")
        checks.integer("blocks", self.blocks, 1, "5 is the release's value")
        checks.within("p_max", self.p_max, 0, 1, "0.8 is the release's value")
        checks.at_least("a1", self.a1, 0, "0 switches this response off")
        checks.at_least("a2", self.a2, 0, "0 switches this response off")
        checks.within("beta", self.beta, 0, 1, "0 reuses nothing")
        checks.integer("last", self.last, 1, "10 is the release's value")
        checks.phase("warmup", self.warmup, 0, "0 begins with the first window")

    @property
    def needs_progress(self) -> bool:
        """See :meth:`lowland.methods.base.Method.needs_progress`."""
        return super().needs_progress or isinstance(self.warmup, float)

    def init(self, params: Vec) -> dict[str, Any]:
        """See :meth:`lowland.methods.base.Method.init`."""
        return {
            "psf": vec.zeros(params),
            "t": 0,  # steps of this method, without a warm-up that is a fraction
            "age": REUSES,  # steps since the last refresh; nothing to reuse yet
            "s": 1.0,
            "used": 0,  # refreshes in this window
            "ratios": [],
            "sizes": [],
            "variances": [],
        }

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        refresh = self._due(engine)
        here = yield Probe(batch)
        if refresh:
            there = yield Probe(batch, at=self.ascent(engine, here.grad))
            psf = vec.sub(there.grad, here.grad)
            vec.zero_unless_(vec.finite(psf), psf)  # NaN is not reused, where a caller skips this step
            engine.memory.update(psf=psf, age=0, used=engine.memory["used"] + 1)
            self._record(engine, psf, here.grad)
            return here.loss, there.grad
        age = engine.memory["age"] = min(engine.memory["age"] + 1, REUSES + 1)
        if age > REUSES:
            return here.loss, here.grad
        return here.loss, vec.add(here.grad, engine.memory["psf"], self.beta**age)

    def _due(self, engine: Engine) -> bool:
        """Whether this step refreshes psf; equal on every rank, because it depends only on values that are."""
        memory = engine.memory
        if isinstance(self.warmup, float) and engine.progress < self.warmup:
            return True
        counter = memory["t"] - (self.warmup if isinstance(self.warmup, int) else 0)
        memory["t"] += 1
        if counter < 0:
            return True
        into = counter % self.window
        if into == 0:
            memory.update(s=self._budget(memory), used=0)
        budget = math.floor(memory["s"])
        missing = budget - memory["used"]
        drawn: bool = missing > 0 and engine.rng.random() < memory["s"] / self.window
        return drawn or bool(self.window - into <= missing)

    def _budget(self, memory: dict[str, Any]) -> float:
        change = self.a1 * _drift(memory["ratios"]) + self.a2 * _drift(memory["variances"])
        return float(min(max(memory["s"] * (1 + change), 1.0), max(1, math.floor(self.window * self.p_max))))

    def _record(self, engine: Engine, psf: Vec, grad: Vec) -> None:
        trained = engine.trained
        last = [i for i, t in enumerate(trained) if t][-self.last :]  # frozen tensors have no gradient
        size = vec.norm([psf[i] for i in last])
        norms = engine.later("norms", torch.stack([size, vec.norm([grad[i] for i in last])]))
        # Norms that are not finite come from an overflow under a loss scaler; a zero gradient has no ratio.
        if norms is None or not all(map(math.isfinite, norms)) or norms[1] == 0:
            return
        memory = engine.memory
        sizes = [*memory["sizes"], norms[0]][-self.window :]
        memory.update(
            sizes=sizes,
            ratios=[*memory["ratios"], norms[0] / norms[1]][-self.window :],
            variances=[*memory["variances"], _spread(sizes, self.blocks)][-self.window :],
        )


@dataclass(frozen=True, kw_only=True)
class ARSAM(VSAM):
    """SAM's extra gradient, sampled adaptively, reused and mixed: a reconstruction on vSAM's rule.

    The paper splits the SAM gradient into the plain one and a projection of the second-order gradient, samples
    the steps that refresh the latter, reuses it for several steps, and mixes it with the plain gradient. Neither its
    exact trigger, window and coefficients nor its code were available. ARSAM comes from the authors of vSAM, whose
    abstract has the same parts and the same claim of 40 %; therefore this class follows vSAM's verified rule.

    Args:
        rho: See :class:`VSAM`, also for all other arguments.

    Cost: 1 + s/K gradients per step, about 1.2 to 1.5; memory and communication as :class:`VSAM`.

    Differs: A reconstruction; see above.

    Invariants: Those of :class:`VSAM`; from equal seeds both take the same steps.

    Use: Under its own name in comparisons, until the authors' rule is known.

    Avoid: As evidence about the paper, whose rule may be another.

    Reference: Deng, Pang: Adaptively Sampling-Reusing-Mixing Decomposed Gradients to Speed Up Sharpness Aware
    Minimization. 2025, arXiv 2510.03763.
    """


def _drift(history: Sequence[float]) -> float:
    """The mean relative change from entry to entry, clipped to [-1, 1]; 0 without two entries."""
    changes = [(b - a) / a for a, b in pairwise(history) if a != 0]
    return min(max(sum(changes) / len(changes), -1.0), 1.0) if changes else 0.0


def _spread(values: Sequence[float], blocks: int) -> float:
    """The population variance within blocks of neighbors in size, averaged over the blocks."""
    ordered, count = sorted(values), min(blocks, len(values))
    short, longer = divmod(len(ordered), count)
    ends = [short * i + min(i, longer) for i in range(count + 1)]  # the first `longer` blocks hold one more
    return sum(statistics.pvariance(ordered[a:b]) for a, b in pairwise(ends)) / count
