"""The base optimizer alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowland.core.probe import Plan, Probe
from lowland.methods.base import Method

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Plain(Method):
    """The plain gradient, as ``loss.backward()`` computes it: the baseline of all other methods.

    ``d = g(w)``

    Args:
        rho: Not used.
        geometry: Not used.

    Cost: 1 gradient per step, no extra memory, 1 all-reduce of P under data parallelism.

    Invariants: ``.grad`` equals that of ``loss.backward()``; SAM and its variants on the full batch are this method at
    rho = 0.

    Use: As the baseline of every comparison, with as many gradients as the other methods.

    Avoid: If nothing is compared: ``loss.backward()`` does the same.

    Reference: Robbins, Monro: A Stochastic Approximation Method. Annals of Mathematical Statistics, 1951.
    """

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        here = yield Probe(batch)
        return here.loss, here.grad
