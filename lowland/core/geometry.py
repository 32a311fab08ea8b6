"""How a gradient becomes a displacement of size rho.

A geometry is a value: ``SAM(geometry=Adaptive(eta=0.01))``. Every geometry takes ``select``, a predicate
``(module, name, parameter) -> bool`` that restricts the displacement to the parameters it accepts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from lowland.core import checks, vec
from lowland.core.errors import UsageError
from lowland.core.vec import Vec

Select: TypeAlias = Callable[[nn.Module, str, Tensor], bool]
Radii: TypeAlias = "float | list[float]"


class Asked(Protocol):
    """What a geometry may ask the engine; see :class:`lowland.engine.answers.Answers`."""

    @property
    def owners(self) -> list[nn.Module]:
        """The module of each parameter."""

    def denominators(self, grad: Vec) -> Vec:
        """What the base optimizer would divide by in its next step with this gradient."""

    def check_denominators(self) -> None:
        """Refuse optimizers without a second moment."""


@dataclass(frozen=True, kw_only=True)
class Geometry(ABC):
    """The shape of the ball in which a method perturbs the weights.

    Args:
        select: Which parameters are displaced, by owning module, full name and tensor; None means all.
    """

    select: Select | None = None

    def validate(self, engine: Asked) -> None:  # noqa: B027 - most geometries take any model and any optimizer
        """Refuse a model or an optimizer that lacks what the geometry needs; called when an engine is made."""

    def known(self, engine: Asked, grad: Vec) -> dict[str, Any]:
        """More keyword arguments of :meth:`ascent`, for a geometry that needs more than weights and gradient."""
        return {}

    @abstractmethod
    def ascent(self, params: Vec, grad: Vec, radii: Radii) -> Vec:
        """The displacement along ``grad``.

        Args:
            params: The current weights.
            grad: The gradient, one tensor per parameter.
            radii: The radius rho, or one radius per parameter. A parameter with radius 0 is not displaced and not in
                the norm.

        Returns:
            The displacement, one tensor per parameter; zero where ``grad`` is zero.
        """

    def ascent_(self, params: Vec, grad: Vec, radii: Radii, **known: Any) -> Vec:
        """:meth:`ascent` for a caller who does not need ``grad`` afterwards; its memory may hold the displacement."""
        return self.ascent(params, grad, radii, **known)


@dataclass(frozen=True, kw_only=True)
class L2(Geometry):
    """A round ball: ``e = rho * g / ||g||`` with one norm over all perturbed parameters."""

    def ascent(self, params: Vec, grad: Vec, radii: Radii) -> Vec:
        """See :meth:`Geometry.ascent`."""
        perturbed = _perturbed(grad, radii)
        if not perturbed:
            return vec.zeros(grad)
        return _stretch(grad, vec.inverse(vec.norm(perturbed)), radii)

    def ascent_(self, params: Vec, grad: Vec, radii: Radii, **known: Any) -> Vec:
        """See :meth:`Geometry.ascent_`."""
        if isinstance(radii, list) or type(self).ascent is not L2.ascent:
            return self.ascent(params, grad, radii, **known)
        vec.scale_(grad, vec.inverse(vec.norm(grad)) * radii)
        return grad


@dataclass(frozen=True, kw_only=True)
class Adaptive(Geometry):
    """A ball in weights relative to their size: ``e = rho * T^2 g / ||T g||`` with ``T = |w| + eta``.

    Args:
        eta: A constant that is added to ``|w|``, >= 0, so that small weights move, too.
        select: See :class:`Geometry`.

    Differs: The released code uses T only for tensors named "weight" and T = 1 for others; here all alike. davda54's
    adaptive SAM has eta = 0; the default here is the release's 0.01.

    Reference: Kwon, Kim, Park, Choi: ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant
    Learning of Deep Neural Networks. ICML 2021, arXiv 2102.11600.
    """

    eta: float = 0.01

    def __post_init__(self) -> None:
        checks.at_least("eta", self.eta, 0, "0.01 is the paper's value")

    def ascent(self, params: Vec, grad: Vec, radii: Radii) -> Vec:
        """See :meth:`Geometry.ascent`."""
        sizes = vec.shift(vec.magnitude(params), self.eta)
        scaled = vec.mul(sizes, grad)
        perturbed = _perturbed(scaled, radii)
        if not perturbed:
            return vec.zeros(grad)
        factor, direction = vec.inverse(vec.norm(perturbed)), vec.mul(sizes, scaled)
        del sizes, scaled, perturbed  # one vector less at the peak
        return _stretch(direction, factor, radii)


@dataclass(frozen=True, kw_only=True)
class Layerwise(Geometry):
    """A ball for every tensor: ``e_l = rho * ||w_l|| * g_l / ||g_l||``; a tensor of zeros counts as norm 1.

    Args:
        trust: False leaves out the factor ``||w_l||``: every tensor moves by rho.
        select: See :class:`Geometry`.

    Differs: The formula ``rho * ||w|| / ||g||`` is from summaries of the paper, which was not available. Norm 1 for
    tensors of zeros is lowland's choice.

    Reference: Liu, Mai, Chen, Hsieh, You: Towards Efficient and Scalable Sharpness-Aware Minimization
    (Look-LayerSAM). CVPR 2022, arXiv 2203.02714.
    """

    trust: bool = True

    def ascent(self, params: Vec, grad: Vec, radii: Radii) -> Vec:
        """See :meth:`Geometry.ascent`."""
        sizes = vec.inverse(vec.norms(grad))  # (number of tensors,)
        if self.trust:
            weights = vec.norms(params)
            sizes = sizes * torch.where(weights == 0, torch.ones_like(weights), weights)
        return vec.stretch(grad, _times(sizes, radii))


@dataclass(frozen=True, kw_only=True)
class Preconditioned(Geometry):
    """A ball in the metric of the optimizer's second moment: ``e = rho * D^-1 g / ||D^-1/2 g||``.

    ``D = s / mean(s)`` with ``s = sqrt(v) + eps``, by which Adam would divide in its next step with this gradient. So e
    is long where gradients have been small. It is the longest ascent ``<g, e>`` with ``||D^1/2 e|| <= rho``.

    v includes the current gradient, so it is known before the first step, where ``s = |g| + eps``. The mean is over all
    weights that may be perturbed, also those that a batch does not reach, whose s is small: where there are many, give
    them radius 0, or ``select`` the others. If s is the same for all weights, it is ``L2()`` with the same radius.

    Args:
        select: See :class:`Geometry`.

    Differs: The paper's abstract says that preconditioning the perturbation helps; its formula was not available. The
    metric, its normalization by the mean, and the current gradient in v are lowland's reading. A third party's form
    ``rho * g / ||g|| / (sqrt(v) + 1e-8)``, with v of the step before, has no fixed size in any norm, and explodes where
    v is still 0.

    Raises:
        UsageError: The engine's optimizer is neither Adam nor AdamW.

    Reference: Singh, Mobahi, Agarwala, Dauphin: Avoiding Spurious Sharpness Minimization Broadens Applicability of
    SAM. ICML 2025, arXiv 2502.02407.
    """

    def validate(self, engine: Asked) -> None:
        """See :meth:`Geometry.validate`."""
        engine.check_denominators()

    def known(self, engine: Asked, grad: Vec) -> dict[str, Any]:
        """See :meth:`Geometry.known`."""
        return {"scales": engine.denominators(grad)}

    def ascent(self, params: Vec, grad: Vec, radii: Radii, *, scales: Vec | None = None) -> Vec:
        """See :meth:`Geometry.ascent`.

        Args:
            params: The current weights.
            grad: The gradient, one tensor per parameter.
            radii: The radius rho, or one radius per parameter.
            scales: s, one tensor per parameter.

        Raises:
            UsageError: There are no ``scales``.
        """
        if scales is None:
            raise UsageError(
                "Preconditioned needs the optimizer's second moment, but got no scales; use method.ascent(engine, "
                "grad), or pass scales=engine.denominators(grad)"
            )
        roots = vec.sqrt(vec.shift(scales, vec.TINY))
        direction = vec.div(grad, roots)
        perturbed = _perturbed(direction, radii)
        if not perturbed:
            return vec.zeros(grad)
        mean = vec.norm(_perturbed(roots, radii)) / math.sqrt(
            sum(t.numel() for t in perturbed)
        )  # its square is mean(s)
        factor = vec.inverse(vec.norm(perturbed)) * mean
        return _stretch(vec.div(direction, roots), factor, radii)


def _times(sizes: Tensor, radii: Radii) -> Tensor:
    if isinstance(radii, list):  # one operation on a list, because the radii are on the host
        return torch.stack(vec.scale(list(sizes.unbind()), radii))
    return sizes * radii


def _perturbed(grad: Vec, radii: Radii) -> Vec:
    if isinstance(radii, list):
        return [g for g, r in zip(grad, radii, strict=True) if r > 0]
    return grad


def _stretch(v: Vec, factor: Tensor, radii: Radii) -> Vec:
    if isinstance(radii, list):
        return vec.scale(v, factor, radii)
    return vec.scale(v, factor * radii)
