"""How a gradient becomes a displacement of size rho.

`rho` is one number, or one per tensor; a tensor whose rho is 0 is not perturbed and not counted in the norm.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from reference.vectors import TINY, Weights, norm

Rho = float | list[float]
Geometry = Callable[[Weights, Weights, Rho], Weights]


def _each(rho: Rho, w: Weights) -> list[float]:
    return list(rho) if isinstance(rho, list) else [rho] * len(w)


def l2(w: Weights, g: Weights, rho: Rho) -> Weights:
    """`rho g / ||g||`: Foret et al. 2021, "Sharpness-Aware Minimization", arXiv 2010.01412."""
    rhos = _each(rho, w)
    length = norm([x for x, r in zip(g, rhos, strict=True) if r])
    return [r * x / (length + TINY) for x, r in zip(g, rhos, strict=True)]


def adaptive(eta: float = 0.01) -> Geometry:
    """`rho T^2 g / ||T g||`, `T = |w| + eta` on all tensors: Kwon et al. 2021, "ASAM", arXiv 2102.11600."""

    def ascent(w: Weights, g: Weights, rho: Rho) -> Weights:
        rhos = _each(rho, w)
        size = [np.abs(p) + eta for p in w]
        scaled = [t * x for t, x in zip(size, g, strict=True)]
        length = norm([x for x, r in zip(scaled, rhos, strict=True) if r])
        return [r * t * x / (length + TINY) for t, x, r in zip(size, scaled, rhos, strict=True)]

    return ascent


def layerwise(w: Weights, g: Weights, rho: Rho) -> Weights:
    """`rho ||w_l|| g_l / ||g_l||` for every tensor l, `||w_l|| = 0` counting as 1.

    Look-LayerSAM in Liu et al. 2022, "Towards Efficient and Scalable Sharpness-Aware Minimization",
    arXiv 2203.02714.
    """
    result = []
    for p, x, r in zip(w, g, _each(rho, w), strict=True):
        weight = norm([p]) or 1.0
        result.append(r * weight * x / (norm([x]) + TINY))
    return result


def polar(g: np.ndarray, iterations: int) -> np.ndarray:
    """`U p(S) V^T` of `g = U S V^T`: the singular values of `g / ||g||` go through `(15 s - 10 s^3 + 3 s^5) / 8`."""
    u, s, v = np.linalg.svd(g, full_matrices=False)
    s = s / (norm([g]) + TINY)
    for _ in range(iterations):
        s = (15.0 * s - 10.0 * s**3 + 3.0 * s**5) / 8.0
    return (u * s) @ v


def spectral(iterations: int = 12) -> Geometry:
    """`rho sqrt(m/n) U V^T` for a gradient of shape (m, n); a vector has n = 1.

    The exponents are those of Yang, Simon, Bernstein 2023, "A Spectral Condition for Feature Learning",
    arXiv 2310.17813, which is about weights and updates; that they hold for perturbations is lowland's reading.
    """

    def ascent(w: Weights, g: Weights, rho: Rho) -> Weights:
        result = []
        for x, r in zip(g, _each(rho, w), strict=True):
            matrix = x.reshape(x.shape[0] if x.ndim else 1, -1)
            m, n = matrix.shape
            result.append((r * np.sqrt(m / n) * polar(matrix, iterations)).reshape(x.shape))
        return result

    return ascent
