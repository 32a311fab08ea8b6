"""Measures of how flat the loss is around the weights: plain functions on any model and loss function.

::

    value, error = worst_sharpness(model, loss_fn, batches, rho=0.05)
    values, residuals = hessian_eigenvalues(model, loss_fn, batches, k=3)
"""

from __future__ import annotations

from lowland.sharpness.ascent import m_sharpness
from lowland.sharpness.average import average_sharpness
from lowland.sharpness.critical import Critical, critical_sharpness
from lowland.sharpness.density import Density, hessian_density
from lowland.sharpness.eigenvalues import Eigenvalues, hessian_eigenvalues
from lowland.sharpness.estimates import Estimate
from lowland.sharpness.slices import Slice, loss_between, loss_line, loss_plane
from lowland.sharpness.trace import hessian_trace
from lowland.sharpness.worst import worst_sharpness

__all__ = [
    "Critical",
    "Density",
    "Eigenvalues",
    "Estimate",
    "Slice",
    "average_sharpness",
    "critical_sharpness",
    "hessian_density",
    "hessian_eigenvalues",
    "hessian_trace",
    "loss_between",
    "loss_line",
    "loss_plane",
    "m_sharpness",
    "worst_sharpness",
]
