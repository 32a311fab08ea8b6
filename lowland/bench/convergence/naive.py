"""Two ways to make SAM's two gradients independent that give up its convergence, as a user would write them.

The SAMPa paper compares with both on ``||x||^2`` (Xie, Pethick, Cevher, NeurIPS 2024, arXiv 2410.10683), under these
names. Its text was not available; the rules are reconstructions from summaries. A third way, the stale gradient at the
last weights, is ``AsyncSAM(share=1.0)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

import lowland
from lowland.core import vec
from lowland.core.vec import Vec


@dataclass(frozen=True, kw_only=True)
class OptSAM(lowland.Method):
    """The last perturbed gradient perturbs the weights; no gradient is taken anywhere else.

    ``x~_t = x_t + rho * g(x~_{t-1}) / ||g(x~_{t-1})||``, ``d = g(x~_t)``; the first step has no perturbation.

    On ``||x||^2`` with a step lr < 1/2 and a start x_1 after the first step, u = x_1 / ||x_1||, every perturbation is
    rho u, so ``x_t + rho u`` shrinks by 1 - 2 lr in each step. The perturbed point converges to the minimizer, and the
    weights to ``-rho u``, for any lr. The geometry adds 1e-12 to the norm that it divides by. So when the perturbed
    gradient is about as small as ``sqrt(1e-12 rho)``, the perturbation shrinks, the perturbed point goes over to the
    other side, and the weights travel to ``rho u``, and so on.
    """

    whole_gradient: ClassVar[bool] = False

    def init(self, params: Vec) -> dict[str, Any]:
        """See :meth:`lowland.methods.base.Method.init`."""
        return {"last": vec.zeros(params)}

    def plan(self, engine: lowland.Engine, batch: Any) -> lowland.Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        there = yield lowland.Probe(batch, at=self.ascent(engine, engine.memory["last"]))
        engine.memory["last"] = vec.clone(there.grad)
        return there.loss, there.grad


@dataclass(frozen=True, kw_only=True)
class RandSAM(lowland.Method):
    """A random direction of length rho perturbs the weights.

    ``d = g(x + rho * n / ||n||)`` with n from a normal distribution.

    On ``||x||^2`` the variances of x and of the perturbation add:
    ``E||x'||^2 = (1 - 2 lr)^2 E||x||^2 + 4 lr^2 rho^2``, whose fixed point is ``lr rho^2 / (1 - lr)``.
    """

    whole_gradient: ClassVar[bool] = False

    def plan(self, engine: lowland.Engine, batch: Any) -> lowland.Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        generator = self.generator(engine)
        noise = [torch.randn(p.shape, generator=generator, dtype=p.dtype, device=p.device) for p in engine.params]
        there = yield lowland.Probe(batch, at=self.ascent(engine, noise))
        return there.loss, there.grad
