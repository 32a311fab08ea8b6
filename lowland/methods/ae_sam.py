"""SAM in steps with an unusually large gradient norm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowland.core import checks, vec
from lowland.core.errors import ArgumentError
from lowland.core.probe import Plan, Probe
from lowland.core.vec import Vec
from lowland.methods.base import Method

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class AESAM(Method):
    """A SAM step if the squared gradient norm is large compared with its running mean, else a plain step.

    ::

        q    = ||g||^2
        mean = delta * mean + (1 - delta) * q,   var = delta * var + (1 - delta) * (q - mean)^2
        SAM  if  q >= mean + c * sqrt(var),      c = p * l1 + (1 - p) * l2,   p the completed fraction of training

    Args:
        rho: Radius, >= 0, in parameter norm.
        geometry: How the gradient becomes a displacement.
        delta: Decay of the running mean and variance, in [0, 1].
        l1: The threshold c at the end of training, in standard deviations; -inf is always SAM, inf never.
        l2: The threshold c at the start of training.
        total: The number of steps of the training, >= 1; then p is this method's steps divided by it. None takes p from
            ``engine.progress``.
        lag: 0 decides by the norm of this step; the host waits for the first gradient of the step. 1 decides by the
            norm of the step before, without waiting. That norm hardly predicts this step's norm, so lag=1 is
            :class:`RST` with a fraction of SAM steps that depends on the threshold.

    Cost: 1 to 2 gradients per step, about 1.5 with the defaults; 1 P of memory in a SAM step; as many all-reduces of P
    under data parallelism. The mean gradient perturbs, because its norm decides and all ranks must decide alike. With
    lag=0 the host reads one number from the device in every step, so on a GPU it cannot launch kernels in advance;
    several ranks broadcast this number first.

    Differs: No code is released; the rule is read from two summaries of the paper, and l1 and l2 are what they say.
    The mean starts at the first norm and the variance at zero; while the variance is zero, q counts as the mean. A norm
    that is not finite, or above 1e75, changes neither mean nor variance and counts as the mean.

    Invariants: c = -inf is SAM, c = inf the base optimizer; the choices are the same on every rank and after a resume.

    Use: To compute SAM's second gradient only in steps with a large gradient.

    Avoid: If something else determines the gradient's norm, such as a loss whose scale drifts. If the host must not
    wait for the device, which the default lag=0 makes it do.

    Reference: Jiang, Yang, Zhang, Kwok: An Adaptive Policy to Employ Sharpness-Aware Minimization. ICLR 2023,
    arXiv 2304.14647.
    """

    delta: float = 0.9
    l1: float = -1.0
    l2: float = 1.0
    total: int | None = None
    lag: int = 0

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        checks.within("delta", self.delta, 0, 1, "0.9 is the paper's value")
        checks.within("l1", self.l1, -math.inf, math.inf, "-1 is the paper's value")
        checks.within("l2", self.l2, -math.inf, math.inf, "1 is the paper's value")
        if math.isinf(self.l1) and self.l1 == -self.l2:
            raise ArgumentError(
                f"l1 and l2 must not be opposite infinities, but are {self.l1} and {self.l2}; take -1, 1"
            )
        if self.total is not None:
            checks.integer("total", self.total, 1, "give the steps of the whole training")
        if type(self.lag) is not int or self.lag not in (0, 1):
            raise ArgumentError(
                f"lag must be 0 or 1, but is {self.lag!r}; 0 decides by the norm of this step, 1 by the one before"
            )

    @property
    def needs_progress(self) -> bool:
        """See :meth:`lowland.methods.base.Method.needs_progress`."""
        return super().needs_progress or self.total is None

    def init(self, params: Vec) -> dict[str, Any]:
        """See :meth:`lowland.methods.base.Method.init`."""
        return {"t": 0, "mean": None, "var": 0.0}

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        here = yield Probe(batch)
        size = vec.norm(here.grad).reshape(1)
        norm = engine.now(size) if self.lag == 0 else engine.later("size", size)
        progress = engine.progress if self.total is None else min(engine.memory["t"] / self.total, 1.0)
        z = self._deviation(engine.memory, None if norm is None else norm[0])
        if not z >= self._threshold(progress):
            return here.loss, here.grad
        loss, up = here.loss, Probe(batch, at=self.ascent_(engine, here.grad))
        del here
        there = yield up
        return loss, there.grad

    def _deviation(self, memory: dict[str, Any], size: float | None) -> float:
        """Update mean and variance; return how many standard deviations the squared norm is above the mean."""
        mean, var = memory["mean"], memory["var"]
        memory["t"] += 1
        # A norm that is not finite comes from an overflow under a loss scaler. Above 1e75 the square of q overflows.
        if size is None or not size < 1e75:
            return 0.0
        q = size * size  # in Python's double precision
        first = mean is None
        mean = q if first else q + self.delta * (mean - q)  # in this form exactly mean if q equals mean
        var = 0.0 if first else self.delta * var + (1 - self.delta) * (q - mean) ** 2
        memory.update(mean=mean, var=var)
        return (q - mean) / math.sqrt(var) if var > 0 else 0.0

    def _threshold(self, progress: float) -> float:
        if self.l1 == self.l2 or progress in (0.0, 1.0):  # 0 * inf would be NaN
            return self.l2 if progress < 1 else self.l1
        return progress * self.l1 + (1 - progress) * self.l2
