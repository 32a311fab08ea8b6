"""SAM every k steps; the steps in between reuse a part of its gradient."""

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
    """A SAM step every k steps; the steps in between add its slowly changing part to the plain gradient.

    ::

        every k-th step:  g_s = g(w + rho * g/||g||),  g_v = g_s - (<g, g_s> / ||g||^2) g,  d = g_s
        in between:       d = g + alpha * ||g|| * g_v / ||g_v||

    With ``geometry=Layerwise()`` this is Look-LayerSAM.

    Args:
        rho: Radius, >= 0, in parameter norm.
        geometry: ``L2()`` is LookSAM; ``Layerwise()`` is Look-LayerSAM.
        k: Steps from one SAM step to the next, >= 1; 1 is SAM.
        alpha: Weight of the reused part, >= 0; 0.7 for vision transformers, 0.1 to 0.3 for small CNNs.
        decomposition: "global" projects on the full gradient; "tensor" projects each tensor on its own gradient.

    Cost: 1 + 1/k gradients per step; 1 P of resident memory, 3 P during a SAM step's second pass; 1 + 1/k
    all-reduces of P under data parallelism. The mean gradient perturbs, because g_v is kept and must be the same on
    every rank.

    Differs: No official code exists; the rule is read from summaries of the paper and independent implementations. If
    g_s is parallel to g up to rounding, g_v is set to zero, because it is rounding noise, which the steps in between
    would normalize and add at full strength.

    Invariants: k = 1 is SAM; alpha = 0 is SAM every k steps and the base optimizer in between; g_v is orthogonal to g;
    in between, ``||d - g|| = alpha * ||g||``; T steps take T + ceil(T/k) gradients.

    Use: If SAM helps but costs too much: k = 5 costs 1.2 gradients per step.

    Avoid: With the default alpha on small convolutional networks, for which 0.1 was best and values above 0.3
    gained nothing (arXiv 2401.12033, appendix A.14).

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
            directions, old = self._each(_split, there.grad, here.grad), engine.memory["g_v"]
            # A parameter that this batch did not reach keeps its old direction.
            engine.memory["g_v"] = [n if r else o for n, o, r in zip(directions, old, engine.reached, strict=True)]
            return here.loss, there.grad
        return here.loss, self._each(self._reuse, here.grad, self._direction(engine))

    def _direction(self, engine: Engine) -> Vec:
        """g_v of the parameters that are still trained, normalized again if others were frozen."""
        g_v: Vec = engine.memory["g_v"]
        if all(engine.trained):
            return g_v
        g_v = vec.mask(g_v, engine.trained)
        return g_v if self.decomposition == "tensor" else vec.scale(g_v, vec.inverse(vec.norm(g_v)))

    def _reuse(self, g: Vec, g_v: Vec) -> Vec:
        # In place, which is cheap; the plan owns the gradient of the reading.
        vec.add_(g, g_v, self.alpha * vec.norm(g))
        return g

    def _each(self, combine: Any, a: Vec, b: Vec) -> Vec:
        if self.decomposition == "global":
            return list(combine(a, b))
        return [combine([x], [y])[0] for x, y in zip(a, b, strict=True)]


def _split(g_s: Vec, g: Vec) -> Vec:
    return vec.together(_orthogonal, g_s, g)


def _orthogonal(g_s: Vec, g: Vec) -> Vec:
    """The direction of the part of g_s that is orthogonal to g; zero if g_s is parallel to g."""
    g_v = vec.reject(g_s, g)
    size, full_size = vec.norm(g_v), vec.norm(g_s)
    # Relative, because rounding leaves about eps * ||g_s|| if g_s is parallel to g. The comparison is false for NaN.
    significant = size > 100 * torch.finfo(full_size.dtype).eps * full_size
    vec.scale_(g_v, vec.inverse(size))
    vec.zero_unless_(significant, g_v)
    return g_v
