"""SAM whose direction is searched on a circle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowland.core import checks, vec
from lowland.core.errors import ArgumentError
from lowland.core.probe import Plan, Probe, Reading
from lowland.core.schedule import Schedule
from lowland.core.vec import Vec
from lowland.methods.base import Method

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class XSAM(Method):
    """eXplicit SAM: searches the direction of the largest loss between the ascent and SAM's gradient, and beyond it.

    ::

        p_0 = w,   p_{i+1} = p_i + rho/k * g(p_i)/||g(p_i)||        k ascent steps
        h = g(p_k),   v0 = (p_k - w)/||p_k - w||,   v1 = h/||h||,   theta their angle
        D(a) = (sin((1 - a) * theta) * v0 + sin(a * theta) * v1) / sin(theta)
        d = ||h|| * D(alpha)

    D(a) is a point on the unit circle through v0 and v1. Every few steps a search chooses alpha: the a in 0,
    alpha_delta, .., alpha_max with the largest loss at ``w + rho_max * D(a)``.

    Args:
        rho: Total length of the k ascent steps, >= 0, in parameter norm.
        geometry: How a gradient becomes an ascent step.
        rho_max: Radius at which the search computes losses, >= 0; the release takes twice rho.
        k: The number of ascent steps, >= 1.
        every: Steps between two searches, >= 1; the first step searches. The release searches once an epoch, and so do
            the laboratory's trainings. The default of 100 adds at most 3.5 % to the cost of a step, at which a forward
            pass counts a third of a gradient.
        alpha_max: The largest candidate, >= 0; 1 is SAM's direction, larger values are beyond it.
        alpha_delta: Distance of the candidates, > 0.
        alpha: A fixed alpha, >= 0, without any search: 1 is SAM, 0 takes the direction of the ascent. None searches.

    Cost: k + 1 gradients per step, one after the other; in each search a forward pass for every candidate (21 with the
    defaults), which do not depend on each other; 2 P of memory, 3 P in a search; k + 1 all-reduces of P under data
    parallelism, and one of the candidates' losses in a search. Behind a closure each candidate costs a backward pass,
    too.

    Differs: The release computes theta by arccos, whose argument may exceed 1 by rounding: then its weights are
    NaN, as seen in float32. Here theta is the arc tangent of the two components of v1. Where v0 and v1 are parallel
    or opposite, or where there is no ascent, d is h; the release takes (v0 + v1)/2. The release's search starts
    from a = 0 at loss 0, so that with losses <= 0 it stays at 0; here the largest loss counts, whatever its sign.
    If a loss is not finite alpha stays as it was. The release does not save alpha; here it is in memory. A search
    does not displace parameter groups of radius 0; d covers them. Under data parallelism the release's ranks would
    each search on their own examples; here the losses are averaged over the ranks, which all choose alike. Two
    candidates' losses may differ by less than rounding (1e-7 was seen), so float32 may choose a neighbor of
    float64's choice, and one machine another than the other. With dropout each candidate has its own mask, unless
    ``rng="shared"``.

    Invariants: alpha = 1 is SAM; ||d|| = ||h||; with k = 1 and alpha = 0, d has the direction of the first gradient;
    rho = 0 is the base optimizer.

    Use: With several ascent steps (k > 1), whose last gradient alone points worse than that of one step.

    Avoid: With tiny batches, whose losses say little about the best alpha. With a loss function that is not
    deterministic, whose noise chooses.

    Reference: Chen, Zhou: Revisiting Sharpness-Aware Minimization: A More Faithful and Effective Implementation. ICLR
    2026, arXiv 2603.10048. X-SAM of Duan et al. (arXiv 2601.10251) is another method.
    """

    rho: float | Schedule = 0.15
    rho_max: float = 0.3
    k: int = 1
    every: int = 100
    alpha_max: float = 2.0
    alpha_delta: float = 0.1
    alpha: float | None = None

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        checks.at_least("rho_max", self.rho_max, 0, "0.3 is the release's value")
        checks.integer("k", self.k, 1, "1 is one ascent step, as SAM's")
        checks.integer("every", self.every, 1, "give the steps between searches, such as those of an epoch")
        checks.at_least("alpha_max", self.alpha_max, 0, "2 is the release's value")
        checks.at_least("alpha_delta", self.alpha_delta, 0, "0.1 is the release's value")
        if self.alpha_delta == 0:
            raise ArgumentError("alpha_delta must be > 0, but is 0; 0.1 is the release's value")
        if self.alpha is not None:
            checks.at_least("alpha", self.alpha, 0, "1 is SAM, None searches")

    def init(self, params: Vec) -> dict[str, Any]:
        """See :meth:`lowland.methods.base.Method.init`."""
        return {} if self.alpha is not None else {"alpha": _filled(1.0, params), "t": 0}

    def reshard(self, shares: Sequence[dict[str, Any]], number: int, count: int) -> dict[str, Any]:
        """Keep alpha, which is equal on all ranks; see :meth:`Method.reshard`."""
        return dict(shares[0])

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        here = yield Probe(batch)
        loss, e = here.loss, self._step(engine, here.grad)
        del here
        for _ in range(self.k - 1):
            there = yield Probe(batch, at=e)
            e = vec.add(e, self._step(engine, there.grad))
        there = yield Probe(batch, at=e)
        h = there.grad
        del there
        if self.alpha is None:
            memory, t = engine.memory, engine.memory["t"]
            memory["t"] = t + 1
            if t % self.every == 0:
                looks = yield self._candidates(engine, batch, e, h)
                memory["alpha"] = self._best(engine, looks, memory["alpha"])
            alpha = memory["alpha"]
        else:
            alpha = _filled(self.alpha, engine.params)
        return loss, vec.together(partial(_direction, alpha), e, h)

    def _step(self, engine: Engine, grad: Vec) -> Vec:
        """One ascent step, a k-th of the radius long."""
        step = self.ascent_(engine, grad)
        return step if self.k == 1 else vec.scale(step, 1 / self.k)

    def _alphas(self, params: Vec) -> Tensor:
        """The candidates, shape ``(number of candidates,)``."""
        count = math.ceil((self.alpha_max + 1e-5) / self.alpha_delta)
        device = params[0].device
        return torch.arange(count, dtype=vec.wide(device), device=device) * self.alpha_delta

    def _candidates(self, engine: Engine, batch: Any, e: Vec, h: Vec) -> tuple[Probe, ...]:
        """A probe for the loss at ``rho_max`` along the direction of every candidate."""
        along_e, along_h = _on_circle(e, h, self._alphas(engine.params))
        factor, radii = vec.inverse(vec.norm(h)) * self.rho_max, engine.radii(1.0, self.geometry)
        if isinstance(radii, list):
            perturbed = [radius > 0 for radius in radii]
            e, h = vec.mask(e, perturbed), vec.mask(h, perturbed)
        factors = zip((along_e * factor).unbind(), (along_h * factor).unbind(), strict=True)
        return tuple(Probe(batch, at=partial(_combined, e, h, a, b), grad=False) for a, b in factors)

    def _best(self, engine: Engine, looks: Sequence[Reading], old: Tensor) -> Tensor:
        """The candidate with the largest loss, shape ``(1,)``; the old one if a loss is not finite."""
        losses = engine.averaged(torch.stack([look.loss for look in looks]))
        best = self._alphas(engine.params).index_select(0, losses.argmax().reshape(1))
        return torch.where(torch.isfinite(losses).all(), best, old)


def _filled(value: float, params: Vec) -> Tensor:
    device = params[0].device
    return torch.full((1,), value, dtype=vec.wide(device), device=device)


def _on_circle(e: Vec, h: Vec, alphas: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of e and h in ``||h|| * D(a)`` for every alpha, shape ``(number of alphas,)`` each."""
    size, length = vec.norm(e), vec.norm(h)
    per_length = vec.inverse(length)
    across = vec.norm(vec.reject(h, e)) * per_length
    along = vec.dot(h, e) * vec.inverse(size) * per_length
    angle = torch.atan2(across, along).to(alphas.dtype)
    sine = torch.sin(angle)
    # Rounding leaves an angle of about eps between parallel vectors, which does not say on which circle they are.
    known = (sine > max(1e-8, 100 * torch.finfo(across.dtype).eps)) & (size > 0) | sine.isnan()
    first, second = torch.sin((1 - alphas) * angle) / sine, torch.sin(alphas * angle) / sine
    first, second = torch.where(known, first, 0.0), torch.where(known, second, 1.0)
    return first * (length * vec.inverse(size)), second


def _direction(alpha: Tensor, e: Vec, h: Vec) -> Vec:
    """``||h|| * D(alpha)``; alpha has the shape ``(1,)``."""
    along_e, along_h = _on_circle(e, h, alpha)
    return _combined(e, h, along_e[0], along_h[0])


def _combined(e: Vec, h: Vec, a: Tensor, b: Tensor) -> Vec:
    """``a * e + b * h``."""
    result = vec.scale(h, b.to(h[0].dtype))
    vec.add_(result, e, a.to(e[0].dtype))
    return result
