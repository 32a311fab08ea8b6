"""SAM on a few parameter tensors at a time, chosen by a bandit."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

from lowland.core import checks, vec
from lowland.core.probe import Plan, Probe
from lowland.core.schedule import Schedule
from lowland.core.vec import Vec
from lowland.methods.base import Method

if TYPE_CHECKING:
    from lowland.engine import Engine

DRAWS = 10  # after this many draws of tensors that backward does not reach, the step uses all tensors


@dataclass(frozen=True, kw_only=True)
class SLSAM(Method):
    """Each step draws some parameter tensors and computes both gradients of SAM for them; it skips the others.

    ::

        A   = tensors, each drawn with its own probability p_i
        d_A = g_A(w + rho * g_A/||g_A||)                     the base optimizer skips all others
        p   : raised for tensors with long gradients (an EXP3-type rule), with sum(p) = s * the number of tensors

    Args:
        rho: Radius, >= 0, in the norm of the drawn tensors.
        geometry: How the gradient becomes a displacement.
        s: Average fraction of the tensors that are drawn, in (0, 1]; also the initial probability of each tensor.
        alpha_p: Rate at which probabilities follow the gradients' norms, >= 0.
        p_min: The smallest probability in the released rule's bound, > 0. It adds the same number to every tensor's
            cost, so it cancels.

    Cost: 2 gradients per step, one after the other, both for a fraction of about s of the tensors, which saves backward
    work for the others; 1 P of memory (all weights are saved); 2 all-reduces of the drawn part under data parallelism.
    The mean gradient perturbs, because its norms set the probabilities, which must be the same on every rank.

    Differs: The gradients' norms are read one step late, so that no step waits for the device: a step's probabilities
    depend on all steps but the last one. Probabilities are scaled to their sum by a division by the sum of those below
    1; the release raises this sum to at least 1e-5. If backward reaches no drawn tensor, the step draws again. With a
    compiled model and behind a closure all gradients are computed, and those of other tensors are dropped.

    Invariants: A step that draws all tensors is a SAM step; probabilities lie in [1e-8, 1] and sum to s times the
    number of tensors; tensors that are not drawn keep weights, momentum and ``.grad``, as long as this
    is None (``zero_grad(set_to_none=True)``, torch's default).

    Use: For fine-tuning large models, in which most backward work is for weights. Activation checkpointing must
    have ``use_reentrant=False``; otherwise it loses gradients if no tensor before a block is drawn.

    Avoid: In short trainings from scratch with a small s: each tensor takes only a fraction s of the steps.

    Reference: Cheng, Yang, Wang, Huang, Ma, Yu, Cao, Shen: Sparse Layer Sharpness-Aware Minimization for Efficient
    Fine-Tuning. 2026, arXiv 2602.09395.
    """

    rho: float | Schedule = 0.01
    s: float = 0.2
    alpha_p: float = 1e-3
    p_min: float = 1e-3
    whole_gradient: ClassVar[bool] = False
    synchronized: ClassVar[bool] = False

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        checks.share("s", self.s, "1 draws all tensors", "0 draws no tensor, 0.2 a fifth of them")
        checks.at_least("alpha_p", self.alpha_p, 0, "0 keeps the probabilities as they are")
        checks.share("p_min", self.p_min, "1e-3 is the release's value", "1e-3 is the release's value")

    def init(self, params: Vec) -> dict[str, Any]:
        """See :meth:`lowland.methods.base.Method.init`."""
        return {"p": [self.s] * len(params), "drawn": None}

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        memory = engine.memory
        p, before = memory["p"], memory["drawn"]
        active = self._draw(engine, p)
        here = yield Probe(batch, wrt=active)
        for n in range(DRAWS):
            if any(engine.reached):
                break
            active = self._draw(engine, p) if n < DRAWS - 1 else list(engine.trained)
            here = yield Probe(batch, wrt=active, stats=False)
        norms = engine.later("norms", vec.norms(here.grad))
        if norms is not None and before is not None and all(map(math.isfinite, norms)):
            memory["p"] = self._update(p, norms, **before)
        memory["drawn"] = {"active": active, "chances": p}
        loss, up = here.loss, Probe(batch, at=self.ascent_(engine, here.grad), wrt=active)
        del here
        there = yield up
        return loss, there.grad

    def _draw(self, engine: Engine, p: Sequence[float]) -> list[bool]:
        active, trained = [False], engine.trained
        while not any(active):
            drawn = [engine.rng.random() < chance for chance in p]
            active = [a and t for a, t in zip(drawn, trained, strict=True)]
        return active

    def _update(
        self, p: Sequence[float], norms: Sequence[float], active: Sequence[bool], chances: Sequence[float]
    ) -> list[float]:
        """Update the probabilities ``p`` with the norms of an earlier step, which drew ``active`` with ``chances``."""
        # The released cost of tensor i is (L / p_min)^2 - r_i^2 minus the smallest cost. L and p_min cancel; with them
        # the difference would lose six digits.
        lengths = {i: norms[i] / chances[i] for i, on in enumerate(active) if on}
        longest = max(lengths.values())
        updated = list(p)
        for i, length in lengths.items():
            cost = min((longest - length) * (longest + length), sys.float_info.max)
            updated[i] = p[i] * math.exp(-self.alpha_p * cost / chances[i])
        return [min(max(x, 1e-8), 1.0) for x in fill(updated, self.s * len(p))]


def fill(values: Sequence[float], total: float) -> list[float]:
    """``values`` scaled to a sum with a maximum of 1 each; the excess of a value over 1 is distributed to the others.

    Example:
        >>> fill([1.0, 1.0, 8.0], 2.0)
        [0.5, 0.5, 1.0]
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    rests = list(accumulate(values[i] for i in order))  # from the smallest up, so that rounding loses no small value
    filled = [1.0] * len(values)
    for full in range(len(values)):  # the number of the largest values that are 1; the others are scaled to the rest
        i, rest = order[-1 - full], rests[-1 - full]
        if values[i] * (total - full) <= rest:
            for j in order[: len(values) - full]:
                filled[j] = values[j] / rest * (total - full) if rest > 0 else 0.0
            break
    return filled
