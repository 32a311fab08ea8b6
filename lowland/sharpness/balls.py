"""The ball of displacements over which a sharpness takes its maximum or its mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lowland.core import checks, vec
from lowland.core.transfer import to_device
from lowland.core.vec import Vec

Norm: TypeAlias = Literal["l2", "linf"]
NORMS: tuple[Norm, ...] = ("l2", "linf")


@dataclass(frozen=True, kw_only=True)
class Ball:
    """All displacements ``T u`` with ``||u|| <= rho``; ``T`` is 1, or ``|w| + eta`` for each weight if adaptive.

    Args:
        rho: The radius, >= 0.
        norm: ``l2``, one Euclidean norm over all weights together, or ``linf``, the largest entry.
        adaptive: Whether the displacement of a weight is relative to its size, as in ASAM.
        eta: A constant that is added to ``|w|``, >= 0, in the adaptive case.
    """

    rho: float
    norm: Norm = "l2"
    adaptive: bool = False
    eta: float = 0.0

    def __post_init__(self) -> None:
        checks.at_least("rho", self.rho, 0, "0.05 is usual for l2")
        checks.one_of("norm", self.norm, NORMS)
        checks.at_least("eta", self.eta, 0, "0 makes the measure independent of the scale of a layer")

    def scaled(self, params: Vec, u: Vec) -> Vec:
        """``T u``: the displacement of a point of the ball, or the gradient with respect to ``u``."""
        if not self.adaptive:
            return list(u)
        with torch.no_grad():
            return vec.mul(vec.shift(vec.magnitude(params), self.eta), u)

    def ascend(self, params: Vec, u: Vec, grad: Vec, size: float) -> Vec:
        """One step of projected gradient ascent: along the steepest direction of the norm, then back into the ball.

        Args:
            params: The weights.
            u: The current point.
            grad: The gradient of the loss with respect to the weights, at the current point.
            size: The length of the step in the norm of the ball.
        """
        slope = self.scaled(params, grad)
        if self.norm == "linf":
            return [(a + size * s.sign()).clamp(-self.rho, self.rho) for a, s in zip(u, slope, strict=True)]
        moved = vec.add(u, vec.scale(slope, vec.inverse(vec.norm(slope)) * size))
        length = vec.norm(moved)
        return vec.scale(moved, torch.where(length > self.rho, self.rho * vec.inverse(length), 1.0))

    def border(self, params: Vec, generator: torch.Generator) -> Vec:
        """A random point of the border: uniform on the sphere for ``l2``, a uniform corner of the cube for ``linf``."""
        if self.norm == "linf":
            return [_drawn(p, generator).sign() * self.rho for p in params]
        normal = [_drawn(p, generator) for p in params]
        return vec.scale(normal, vec.inverse(vec.norm(normal)) * self.rho)

    def inside(self, params: Vec, generator: torch.Generator) -> Vec:
        """A random point to start an ascent from: on the sphere for ``l2``, uniform in the cube for ``linf``."""
        if self.norm == "l2":
            return self.border(params, generator)
        return [(2 * _drawn(p, generator, uniform=True) - 1) * self.rho for p in params]


def _drawn(p: Tensor, generator: torch.Generator, *, uniform: bool = False) -> Tensor:
    """Random numbers in the shape of a parameter, drawn on the host, so that they are the same on every device."""
    draw = torch.rand if uniform else torch.randn
    return to_device(draw(p.shape, generator=generator, dtype=p.dtype), p.device)
