"""SAM for normalization layers only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from lowland.core.errors import ArgumentError, ParameterError
from lowland.core.geometry import Geometry, Select
from lowland.core.probe import Plan
from lowland.core.schedule import Schedule
from lowland.methods.base import Perturbing

if TYPE_CHECKING:
    from lowland.engine import Engine

LAYERS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Normalization:
    """Selects the parameters of normalization layers, by the layers' type.

    Args:
        extra: A predicate ``(module, name, parameter) -> bool`` that adds others, such as your own layers.
    """

    extra: Select | None = None

    def __call__(self, module: nn.Module, name: str, parameter: Tensor) -> bool:
        """Whether this parameter belongs to a normalization layer, or ``extra`` accepts it."""
        return isinstance(module, LAYERS) or (self.extra is not None and bool(self.extra(module, name, parameter)))


@dataclass(frozen=True, kw_only=True)
class SAMON(Perturbing):
    """SAM-ON: only the scales and offsets of normalization layers are perturbed.

    ``e = rho * g_n / ||g_n||`` with ``g_n`` the gradient of the normalization layers' parameters and zero elsewhere,
    ``d = g(w + e)``, all of it.

    Args:
        rho: Radius, >= 0, in the norm of the perturbed parameters; larger than SAM's, because they are few.
        geometry: How g_n becomes a displacement; its ``select`` must be None.
        ascent_gradient: "mean" over the ranks, or each rank's own ("local"); see :class:`SAM`.
        extra: A predicate ``(module, name, parameter) -> bool`` that adds parameters to perturb, such as those of
            your own normalization layers that are no subclasses of torch's; None adds none.

    Cost: 2 gradients per step, one after the other, the first of them for the perturbed parameters only; 1 P of memory
    (all weights are saved, though few move); 2 all-reduces of P under data parallelism, of which the first needs only
    the perturbed part; 1 with ``ascent_gradient="local"``.

    Differs: The release selects the layers by "norm" and "bn" in their names, which misses some and includes others;
    here their type decides: BatchNorm, LayerNorm, GroupNorm, InstanceNorm, RMSNorm and their subclasses. A model
    without such layers is refused. The first pass computes the gradient of the perturbed parameters only. The default
    radius of 0.5 is the release's. The release updates BatchNorm statistics in both passes; here only the first pass
    does.

    Invariants: With all tensors selected it is SAM; rho = 0 is the base optimizer.

    Use: For networks with normalization, for which its authors report better results than with all layers; the
    first pass saves the backward work for all other weights.

    Avoid: For models without normalization layers, which are refused. With SAM's radius, which is too small for so
    few parameters.

    Reference: Müller, Vlaar, Rolnick, Hein: Normalization Layers Are All That Sharpness-Aware Minimization Needs.
    NeurIPS 2023, arXiv 2306.04226.
    """

    rho: float | Schedule = 0.5
    extra: Select | None = None
    whole_gradient: ClassVar[bool] = False
    synchronized: ClassVar[bool] = False

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        if self.extra is not None and not callable(self.extra):
            raise ArgumentError(
                f"extra must be a predicate (module, name, parameter) -> bool, but is {self.extra!r}; None adds none"
            )
        if self.geometry.select is not None:
            raise ArgumentError(
                f"geometry must not select parameters of its own, but is {self.geometry!r}; SAMON selects the "
                "normalization layers, and extra=… adds others"
            )

    def validate(self, engine: Engine) -> None:
        """See :meth:`lowland.methods.base.Method.validate`."""
        if not any(engine.selected(self._ball())):
            raise ParameterError(
                "the model must have a normalization layer for SAMON to perturb, but has none that is trained (by "
                "type: BatchNorm, LayerNorm, GroupNorm, InstanceNorm, RMSNorm); add yours with extra=…, or use SAM"
            )

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        here = yield self.probe(batch, wrt=self._chosen(engine))
        ball = self._ball()
        e = ball.ascent(engine.params, here.grad, engine.radii(self.rho, ball), **ball.known(engine, here.grad))
        loss, up = here.loss, self.probe(batch, at=e)
        del here, e
        there = yield up
        return loss, there.grad

    def _ball(self) -> Geometry:
        return replace(self.geometry, select=Normalization(self.extra))

    def _chosen(self, engine: Engine) -> list[bool]:
        """Which parameters are perturbed, unless their group's own radius is 0."""
        radii = engine.radii(1.0, self._ball())
        return [radius > 0 for radius in radii] if isinstance(radii, list) else [radii > 0] * len(engine.params)
