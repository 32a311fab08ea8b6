"""SAM between the normalized and the plain gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from lowland.core import checks, vec
from lowland.core.errors import ArgumentError
from lowland.core.probe import Plan
from lowland.core.schedule import Schedule
from lowland.core.vec import Vec
from lowland.methods.base import Perturbing

if TYPE_CHECKING:
    from lowland.engine import Engine

RAMPS = ("1/t", "1-1/t")  # the values of lam that follow the step


@dataclass(frozen=True, kw_only=True)
class UnifiedSAM(Perturbing):
    """Unified SAM: the perturbation is a mixture of rho times the gradient and of the gradient at length rho.

    ``e = rho * (1 - lam + lam/||g||) * g``, ``d = g(w + e)``

    Args:
        rho: Radius, >= 0, in parameter norm for lam = 1; for lam = 0 the factor of the gradient.
        geometry: How the gradient becomes a displacement of size rho, whose length is then multiplied by
            ``lam + (1 - lam) * ||g||``. With ``L2()`` this is the formula above.
        ascent_gradient: "mean" over the ranks, or each rank's own ("local"); see :class:`SAM`.
        lam: The share of the normalized gradient, in [0, 1]: 0 is USAM, without normalization, and 1 is SAM. "1/t" goes
            from SAM to USAM, "1-1/t" from USAM to SAM; t is the number of the engine's step, from 1.

    Cost: 2 gradients per step, one after the other; 1 P of memory; 2 all-reduces of P under data parallelism, 1 with
    ``ascent_gradient="local"``.

    Differs: The release has no defaults; lam = "1-1/t" is its authors' recommendation, and rho = 0.1 the smallest
    radius of their experiments. The release's state has no t, so that a resumed run starts again at t = 1; here t is
    ``engine.step + 1``. Within ``Late`` and ``Switch`` t counts the steps of the whole training. The norm omits
    parameter groups of radius 0. The release updates BatchNorm statistics in both passes; here only the first pass
    does.

    Invariants: lam = 1 is SAM; rho = 0 is the base optimizer; "1/t" takes a SAM step first, "1-1/t" a USAM step; with
    lam = 0 twice the loss gives twice the perturbation.

    Use: To let the perturbation shrink with the gradient (lam < 1), or to compare SAM with USAM.

    Avoid: With lam < 1 and a loss whose scale drifts or is summed over examples: the perturbation then has another
    length. With a GradScaler nothing changes, because readings have no loss scale.

    Reference: Oikonomou, Loizou: Sharpness-Aware Minimization: General Analysis and Improved Rates. ICLR 2025,
    arXiv 2503.02225. USAM is from Andriushchenko, Flammarion, 2022, arXiv 2206.06232.
    """

    rho: float | Schedule = 0.1
    lam: float | Literal["1/t", "1-1/t"] = "1-1/t"

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        if isinstance(self.lam, str):
            if self.lam not in RAMPS:
                raise ArgumentError(
                    f"lam must be a number in [0, 1], '1/t' or '1-1/t', but is {self.lam!r}; 0 is USAM, 1 is SAM"
                )
        else:
            checks.within("lam", self.lam, 0, 1, "0 is USAM, 1 is SAM; '1/t' and '1-1/t' follow the step")

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        here = yield self.probe(batch)
        loss, up = here.loss, self.probe(batch, at=self._displacement(engine, here.grad))
        del here
        there = yield up
        return loss, there.grad

    def _displacement(self, engine: Engine, grad: Vec) -> Vec:
        lam = self._share(engine.step + 1)
        if lam == 1:
            return self.ascent_(engine, grad)
        factor = lam + (1 - lam) * self._size(engine, grad)  # before the gradient's memory holds the displacement
        return vec.scale(self.ascent_(engine, grad), factor)

    def _share(self, t: int) -> float:
        """The share of the normalized gradient in step ``t``, counted from 1."""
        if isinstance(self.lam, str):
            return 1 / t if self.lam == "1/t" else 1 - 1 / t
        return self.lam

    def _size(self, engine: Engine, grad: Vec) -> Tensor | float:
        """The norm of the gradient of the perturbed parameters."""
        radii = engine.radii(self.rho, self.geometry)
        if isinstance(radii, list):
            grad = [g for g, radius in zip(grad, radii, strict=True) if radius > 0]
        return vec.norm(grad) if grad else 0.0
