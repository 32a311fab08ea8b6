"""Sharpness-aware minimization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowland.core.probe import Plan
from lowland.methods.base import Perturbing

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class SAM(Perturbing):
    """The gradient at a perturbed point, to which an ascent step of length rho leads, instead of at the weights.

    ``e = rho * g(w) / ||g(w)||``, ``d = g(w + e)``

    Args:
        rho: Radius, >= 0, in parameter norm; 0.05 is usual.
        geometry: ``L2()`` is SAM; ``Adaptive()`` is ASAM.
        ascent_gradient: The gradient that perturbs under data parallelism: "mean", the average over all ranks, or
            "local", each rank's own gradient. With "local" each rank computes the step on its part of the batch, and
            only the results are averaged, which saves an all-reduce. On one process both are the same.

    Cost: 2 gradients per step, one after the other; 1 P of memory (the saved weights); 2 all-reduces of P
    under data parallelism, 1 with ``ascent_gradient="local"``.

    Differs: In the JAX release (google-research/sam) weight decay is part of the loss, and a zero gradient gives NaN;
    here weight decay belongs to the base optimizer, at the unperturbed weights, and a zero gradient gives a zero
    perturbation. Under data parallelism the mean gradient perturbs all ranks, as in davda54's code under DDP; the JAX
    release and composer perturb each rank by its own gradient: ``ascent_gradient="local"``. The norm omits parameter
    groups of radius 0; davda54's code includes them.

    Invariants: rho = 0 is the base optimizer; a loss that is scaled by c > 0 has the same perturbation; on a quadratic
    with Hessian A, ``d - g = rho * A g / ||g||``.

    Use: As the reference for the cheaper methods, and if accuracy matters more than time. The radius is the one
    hyperparameter that matters: try 0.02, 0.05, 0.1, 0.2.

    Avoid: If two gradients per step are too expensive: LookSAM and Momentum-SAM cost less. In trainings of a few
    epochs, which the usual radii only slow down.

    Reference: Foret, Kleiner, Mobahi, Neyshabur: Sharpness-Aware Minimization for Efficiently Improving
    Generalization. ICLR 2021, arXiv 2010.01412.
    """

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        here = yield self.probe(batch)
        loss, up = here.loss, self.probe(batch, at=self.ascent_(engine, here.grad))
        del here  # the first gradient is now the displacement, which is freed before the second pass
        there = yield up
        return loss, there.grad
