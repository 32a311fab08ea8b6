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

DRAWS = 10  # after so many draws that backward does not reach, all tensors take part


@dataclass(frozen=True, kw_only=True)
class SLSAM(Method):
    """Each step draws some parameter tensors and takes both gradients of SAM for those alone; the others rest.

    ::

        A   = tensors, each drawn with its own probability p_i
        d_A = g_A(w + rho * g_A/||g_A||)                     the base optimizer skips all others
        p   : raised for tensors with long gradients (an EXP3-type rule), with sum(p) = s * the number of tensors

    Args:
        rho: Radius, >= 0, in the norm of the drawn tensors.
        geometry: How the gradient becomes a displacement.
        s: Share of the tensors that is drawn on average, in (0, 1]; also their first probability.
        alpha_p: How fast probabilities follow the gradients' lengths, >= 0.
        p_min: The smallest probability in the released rule's bound, > 0. It adds the same number to every tensor's
            cost, so it cancels.

    Cost: 2 gradients per step, one after the other, both for a share of about s of the tensors, which saves that part
    of the backward work; 1 P of memory (all weights are saved); 2 all-reduces of the drawn part under data parallelism.
    The mean gradient perturbs: its lengths set the probabilities, which must be the same on every rank.

    Differs: The gradients' lengths are read one step late, so that no step waits for the device: a step's probabilities
    know all steps but the last one. Probabilities are scaled to their sum by a division by the sum of those still below
    1, which the release raises to 1e-5 where it is smaller; here it stays as it is. A draw that the backward pass does
    not reach is drawn anew. With a compiled model and behind a closure all gradients are computed and the others thrown
    away.

    Invariants: A step that draws all tensors is a SAM step; probabilities lie in [1e-8, 1] and sum to s times the
    number of tensors; tensors that are not drawn keep weights, momentum and ``.grad``, as long as this
    is None (``zero_grad(set_to_none=True)``, torch's default).

    Use: For fine-tuning large models, where most of the backward work is for weights. Not for short trainings from
    scratch with a small s: each tensor takes only a share s of the steps. Activation checkpointing must be the one
    with ``use_reentrant=False``: the other loses gradients where nothing before a block is drawn.

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
        known = engine.later("norms", vec.norms(here.grad))
        if known is not None and before is not None and all(map(math.isfinite, known)):
            memory["p"] = self._moved(p, known, **before)
        memory["drawn"] = {"active": active, "chances": p}
        loss, up = here.loss, Probe(batch, at=self.ascent(engine, here.grad), wrt=active)
        del here
        there = yield up
        return loss, there.grad

    def _draw(self, engine: Engine, p: Sequence[float]) -> list[bool]:
        active, trained = [False], engine.trained
        while not any(active):
            drawn = [engine.rng.random() < chance for chance in p]
            active = [a and t for a, t in zip(drawn, trained, strict=True)]
        return active

    def _moved(
        self, p: Sequence[float], norms: Sequence[float], active: Sequence[bool], chances: Sequence[float]
    ) -> list[float]:
        """The probabilities after the norms of a step have become known, which drew ``active`` by ``chances``."""
        # The released cost of tensor i is (L / p_min)^2 - r_i^2, less the least cost: L and p_min cancel, and written
        # out they would take six digits with them.
        lengths = {i: norms[i] / chances[i] for i, on in enumerate(active) if on}
        longest = max(lengths.values())
        moved = list(p)
        for i, length in lengths.items():
            cost = min((longest - length) * (longest + length), sys.float_info.max)
            moved[i] = p[i] * math.exp(-self.alpha_p * cost / chances[i])
        return [min(max(x, 1e-8), 1.0) for x in fill(moved, self.s * len(p))]


def fill(values: Sequence[float], total: float) -> list[float]:
    """``values`` scaled to a sum, none above 1: what a scaled value has beyond 1 goes to the others.

    Example:
        >>> fill([1.0, 1.0, 8.0], 2.0)
        [0.5, 0.5, 1.0]
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    rests = list(accumulate(values[i] for i in order))  # from the smallest up, so that none is lost beside large ones
    filled = [1.0] * len(values)
    for full in range(len(values)):  # so many of the largest are at 1, and the others share what is left
        i, rest = order[-1 - full], rests[-1 - full]
        if values[i] * (total - full) <= rest:
            for j in order[: len(values) - full]:
                filled[j] = values[j] / rest * (total - full) if rest > 0 else 0.0
            break
    return filled
