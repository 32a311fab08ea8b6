"""SAM in the metric of Adam's second moment, as lowland reads "preconditioning the SAM perturbation".

Singh, Mobahi, Agarwala, Dauphin, ICML 2025, arXiv 2502.02407, whose formula was not available.
"""

from __future__ import annotations

import copy
import math

import numpy as np

from reference.base import Adam
from reference.functional_sam import FunctionalSAM
from reference.geometry import _each
from reference.sam import SAM
from reference.vectors import TINY, Weights, norm


def roots(base: Adam, w: Weights, g: Weights) -> Weights:
    """`sqrt(v_hat) + eps` after a step of a copy of Adam with this gradient."""
    after = copy.deepcopy(base)
    after.step(w, g, 0.0)
    second = after.v_max if after.amsgrad else after.v
    return [np.sqrt(v) / math.sqrt(1.0 - after.betas[1] ** t) + after.eps for v, t in zip(second, after.t, strict=True)]


class PreconditionedSAM(SAM):
    """`e = rho D^-1 g / ||D^-1/2 g||` with `D = s / mean(s)`, both over the tensors that are perturbed."""

    def ascent(self, g: Weights) -> Weights:
        rhos = _each(self.rho, self.w)
        s = [x + TINY for x in roots(self.base, self.w, g)]  # type: ignore[arg-type]
        mean = np.concatenate([x.ravel() for x, r in zip(s, rhos, strict=True) if r]).mean()
        d = [x / mean for x in s]
        length = norm([x / np.sqrt(y) for x, y, r in zip(g, d, rhos, strict=True) if r])
        return [r * x / y / (length + TINY) for x, y, r in zip(g, d, rhos, strict=True)]


class PreconditionedFunctionalSAM(FunctionalSAM):
    """Both of the paper's ideas together."""

    ascent = PreconditionedSAM.ascent
