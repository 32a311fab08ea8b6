"""SAM in a ball that follows the size of the weights."""

from __future__ import annotations

from dataclasses import dataclass

from lowland.core.geometry import Adaptive, Geometry
from lowland.core.schedule import Schedule
from lowland.methods.sam import SAM


@dataclass(frozen=True, kw_only=True)
class ASAM(SAM):
    """SAM whose perturbation grows with each weight, so that rescaling a layer does not change its sharpness.

    ``e = rho * T^2 g / ||T g||`` with ``T = |w| + eta``, ``d = g(w + e)``: it is ``SAM(rho=0.5, geometry=Adaptive())``.

    Args:
        rho: Radius, >= 0, in weights relative to their size; about ten times that of :class:`SAM`.
        geometry: ``Adaptive(eta)``; its eta, 0.01 by default, keeps small weights moving.
        ascent_gradient: "mean" over the ranks, or each rank's own ("local"); see :class:`SAM`.

    Cost: 2 gradients per step, one after the other; 1 P of memory in the second pass, 3 P while the perturbation
    is made; 2 all-reduces of P under data parallelism, 1 with ``ascent_gradient="local"``.

    Differs: The released code uses T for tensors named "weight" and 1 for others; here all are treated alike, because
    a name says nothing about what a tensor does. The default eta of 0.01 is the release's; davda54's adaptive SAM has
    no eta, which is ``Adaptive(eta=0)``. The release updates BatchNorm statistics in both passes; here the first one
    does.

    Invariants: With one constant T it is SAM at another radius; rho = 0 is the base optimizer.

    Use: Where layers differ much in scale, as in networks with normalization. Not as a cheaper SAM: it costs the same.

    Reference: Kwon, Kim, Park, Choi: ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of
    Deep Neural Networks. ICML 2021, arXiv 2102.11600.
    """

    rho: float | Schedule = 0.5
    geometry: Geometry = Adaptive()  # noqa: RUF009 - frozen, so it can be shared
