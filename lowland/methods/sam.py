"""Sharpness-aware minimization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowland.method import Method
from lowland.probe import Plan, Probe

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class SAM(Method):
    """The gradient at the worst nearby point instead of the gradient here.

    ``e = rho * g(w) / ||g(w)||``, ``d = g(w + e)``

    Args:
        rho: Radius, >= 0, in parameter norm; 0.05 is usual.
        geometry: ``L2()`` is SAM; ``Adaptive()`` is ASAM.

    Cost: 2 gradients per step, one after the other; 1 P of memory (the saved weights); 2 all-reduces of P
    under data parallelism.

    Differs: In the JAX release (google-research/sam) weight decay is part of the loss, and a zero gradient gives NaN;
    here weight decay belongs to the base optimizer, at the unperturbed weights, and a zero gradient gives a zero
    perturbation. Under data parallelism the JAX release and composer perturb every worker by its own gradient; here, as
    in davda54's code under DDP, all are perturbed by the mean gradient (``MicroSAM(m=1)`` under DDP perturbs every
    worker by its own). Where parameter groups have radii of their own, the norm leaves out the groups of radius 0;
    davda54's code counts them.

    Invariants: rho = 0 is the base optimizer; a loss that is scaled by c > 0 has the same perturbation; on a quadratic
    with Hessian A, ``d - g = rho * A g / ||g||``.

    Use: As the reference that the cheaper methods are judged by, and where accuracy matters more than time. Its radius
    is the one hyperparameter that counts: try 0.02, 0.05, 0.1, 0.2. Not where two gradients per step cannot be paid;
    LookSAM and Momentum-SAM cost less.

    Reference: Foret, Kleiner, Mobahi, Neyshabur: Sharpness-Aware Minimization for Efficiently Improving
    Generalization. ICLR 2021, arXiv 2010.01412.
    """

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.method.Method.plan`."""
        here = yield Probe(batch)
        loss, up = here.loss, Probe(batch, at=self.ascent(engine, here.grad))
        del here  # frees the first gradient before the second pass: the saved weights are all that is kept
        there = yield up
        return loss, there.grad
