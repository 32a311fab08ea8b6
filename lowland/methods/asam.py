"""SAM in a ball that follows the size of the weights."""

from __future__ import annotations

from dataclasses import dataclass

from lowland.core.geometry import Adaptive, Geometry
from lowland.core.schedule import Schedule
from lowland.methods.sam import SAM


@dataclass(frozen=True, kw_only=True)
class ASAM(SAM):
    """SAM whose perturbation is proportional to each weight, so that rescaling a layer does not change its sharpness.

    ``e = rho * T^2 g / ||T g||`` with ``T = |w| + eta``, ``d = g(w + e)``: it is ``SAM(rho=0.5, geometry=Adaptive())``.

    Args:
        rho: Radius, >= 0, in weights relative to their size; about ten times the radius of :class:`SAM`.
        geometry: ``Adaptive(eta)``; because of its eta, 0.01 by default, small weights move, too.
        ascent_gradient: "mean" over the ranks, or each rank's own ("local"); see :class:`SAM`.

    Cost: 2 gradients per step, one after the other; 1 P of memory in the second pass, 3 P while the perturbation
    is made; 2 all-reduces of P under data parallelism, 1 with ``ascent_gradient="local"``.

    Differs: The released code uses T for tensors named "weight" and 1 for others; here all use T, because a name does
    not say what a tensor does. The default eta of 0.01 is the release's; davda54's adaptive SAM has no eta, which is
    ``Adaptive(eta=0)``. The release updates BatchNorm statistics in both passes; here only the first pass does.

    Invariants: With one constant T it is SAM at another radius; rho = 0 is the base optimizer.

    Use: If layers differ much in scale, as in networks with normalization.

    Avoid: As a cheaper SAM: it costs the same. With SAM's radius: it needs about ten times as much.

    Reference: Kwon, Kim, Park, Choi: ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of
    Deep Neural Networks. ICML 2021, arXiv 2102.11600.
    """

    rho: float | Schedule = 0.5
    geometry: Geometry = Adaptive()  # noqa: RUF009 - frozen, so it can be shared
