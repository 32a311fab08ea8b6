"""SAM every k steps, and what it found in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from lowland.core import checks, vec
from lowland.core.probe import Plan, Probe
from lowland.core.vec import Vec
from lowland.methods.base import Method

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class LookSAM(Method):
    """A SAM step every k steps; in between, its slowly changing part is added to the plain gradient.

    ::

        every k-th step:  g_s = g(w + rho * g/||g||),  g_v = g_s - (<g, g_s> / ||g||^2) g,  d = g_s
        in between:       d = g + alpha * ||g|| * g_v / ||g_v||

    With ``geometry=Layerwise()`` this is Look-LayerSAM.

    Args:
        rho: Radius, >= 0, in parameter norm.
        geometry: ``L2()`` is LookSAM; ``Layerwise()`` is Look-LayerSAM.
        k: Steps from one SAM step to the next, >= 1; 1 is SAM.
        alpha: Weight of the reused part, >= 0; 0.7 for vision transformers, 0.1 to 0.3 for small CNNs.
        decomposition: "global" splits along the gradient as a whole; "tensor" splits each tensor on its own.

    Cost: 1 + 1/k gradients per step; 1 P of resident memory, 3 P during a SAM step's second pass; 1 + 1/k
    all-reduces of P under data parallelism. The mean gradient perturbs: g_v is kept, and must be the same on every
    rank.

    Differs: No official code exists; the rule is read from the paper's summaries and independent
    implementations. Where g_s is parallel to g up to rounding, g_v is set to zero: it would be rounding noise,
    and the normalized reuse would inject it at full strength.

    Invariants: k = 1 is SAM; alpha = 0 is SAM every k steps and the base optimizer in between; g_v is orthogonal to g;
    in between, ``||d - g|| = alpha * ||g||``; T steps take T + ceil(T/k) gradients.

    Use: Where SAM helps and its price hurts: k = 5 costs 1.2 gradients. Not with the default alpha on small
    convolutional networks, where 0.1 was found best and nothing gained above 0.3 (arXiv 2401.12033, appendix A.14).

    Reference: Liu, Mai, Chen, Hsieh, You: Towards Efficient and Scalable Sharpness-Aware Minimization.
    CVPR 2022, arXiv 2203.02714.
    """

    k: int = 5
    alpha: float = 0.7
    decomposition: Literal["global", "tensor"] = "global"

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        checks.integer("k", self.k, 1, "k=1 is SAM at every step")
        checks.at_least("alpha", self.alpha, 0, "alpha=0 is SAM every k steps and the plain gradient between")
        checks.one_of("decomposition", self.decomposition, ("global", "tensor"))

    def init(self, params: Vec) -> dict[str, Any]:
        """See :meth:`lowland.methods.base.Method.init`."""
        return {"g_v": vec.zeros(params), "t": 0}  # g_v of length 1, because only its direction is reused

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        t = engine.memory["t"]
        here = yield Probe(batch)
        engine.memory["t"] = t + 1
        if t % self.k == 0:
            there = yield Probe(batch, at=self.ascent(engine, here.grad))
            found, old = self._each(_split, there.grad, here.grad), engine.memory["g_v"]
            # A parameter that this batch did not use keeps what is known of it.
            engine.memory["g_v"] = [n if r else o for n, o, r in zip(found, old, engine.reached, strict=True)]
            return here.loss, there.grad
        return here.loss, self._each(self._reuse, here.grad, self._kept(engine))

    def _kept(self, engine: Engine) -> Vec:
        """g_v of the parameters that are still trained, of length 1 again where others were frozen since."""
        g_v: Vec = engine.memory["g_v"]
        if all(engine.trained):
            return g_v
        g_v = vec.mask(g_v, engine.trained)
        return g_v if self.decomposition == "tensor" else vec.scale(g_v, vec.inverse(vec.norm(g_v)))

    def _reuse(self, g: Vec, g_v: Vec) -> Vec:
        # In place: the reading's gradient is the plan's own, and a step in between should cost next to nothing.
        vec.add_(g, g_v, self.alpha * vec.norm(g))
        return g

    def _each(self, combine: Any, a: Vec, b: Vec) -> Vec:
        if self.decomposition == "global":
            return list(combine(a, b))
        return [combine([x], [y])[0] for x, y in zip(a, b, strict=True)]


def _split(g_s: Vec, g: Vec) -> Vec:
    return vec.together(_orthogonal, g_s, g)


def _orthogonal(g_s: Vec, g: Vec) -> Vec:
    """The direction of the part of g_s orthogonal to g; zero where there is none."""
    g_v = vec.reject(g_s, g)
    size, whole = vec.norm(g_v), vec.norm(g_s)
    # A relative test: rounding leaves about eps * ||g_s|| even where g_s is parallel to g. NaN does not pass either.
    real = size > 100 * torch.finfo(whole.dtype).eps * whole
    return vec.where_true(real, vec.scale(g_v, vec.inverse(size)))
