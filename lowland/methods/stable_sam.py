"""The direction of another method, scaled to the norm of the plain gradient."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowland.core import vec
from lowland.core.errors import ArgumentError, UsageError
from lowland.core.probe import Plan, Probe
from lowland.core.vec import Vec
from lowland.methods.base import Method, Wrapper
from lowland.methods.sam import SAM

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Renormalized(Wrapper):
    """Stable SAM: the direction of SAM, or of another method, rescaled to the length of the plain gradient.

    ``d = ||g|| / ||g_s|| * g_s`` with ``g_s`` what the inner method returns.

    Args:
        inner: The method to rescale, which has the radius: ``Renormalized(inner=SAM(rho=0.1))``. Each of its steps must
            ask for the gradient of the full batch at the weights, as SAM does and SAMPa does not, with
            ``ascent_gradient="mean"``, because the plain gradient is the mean over the ranks.

    Cost: The inner method's gradients, memory and all-reduces: for SAM 2 gradients per step, 1 P of memory and 2
    all-reduces of P.

    Differs: The paper's experiments perturb by ``rho * g`` without dividing by the norm; here the inner method decides,
    and SAM divides. The release has both forms: its ``sam`` is ``Renormalized(inner=SAM())``, its ``usam`` the paper's.
    A zero direction stays zero.

    Invariants: ``||d|| = ||g||`` and d is parallel to the inner method's direction; ``Plain`` stays as it is.

    Use: If SAM diverges at a learning rate at which plain training does not, because its gradients have larger
    norms near sharp minima.

    Avoid: Around methods that do not compute the plain gradient, such as SAMPa: they are refused.

    Reference: Tan, Zhang, Liu, Wang, Hao: Stabilizing Sharpness-aware Minimization Through A Simple Renormalization
    Strategy. JMLR 2025, arXiv 2401.07250.
    """

    inner: Method = SAM()  # noqa: RUF009 - frozen, so it can be shared

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        super().check()
        if not self.inner.whole_gradient:
            raise ArgumentError(
                "inner must ask for the whole batch's gradient at the weights, which gives the length, but "
                f"{self.inner.kind} does not; wrap SAM, LookSAM or another that does"
            )
        if not self.inner.synchronized:
            raise ArgumentError(
                "inner must average its gradients over the ranks, because the length is that of the mean gradient, but "
                f"{self.inner!r} does not, or not all of them; leave ascent_gradient at 'mean'"
            )

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        size: Tensor | None = None
        answers: list[Any] = [None]  # a list, so that no name keeps a reading alive during the next pass
        with closing(self.inner.plan(engine, batch)) as plan:
            while True:
                try:
                    ask = plan.send(answers.pop())
                except StopIteration as done:
                    loss, d = done.value
                    break
                probes = (ask,) if isinstance(ask, Probe) else tuple(ask)
                plain = next((i for i, probe in enumerate(probes) if _is_plain(probe, batch)), None)
                answers.append((yield ask))
                if plain is not None:
                    reading = answers[0] if isinstance(ask, Probe) else answers[0][plain]
                    size = vec.norm(reading.grad)
                    del reading
                del ask, probes
        if size is None:
            raise UsageError(
                "Renormalized needs an inner method that asks for the whole batch's gradient at the weights, averaged "
                f"over the ranks, but {self.inner.kind} did not; use it without Renormalized"
            )
        return loss, vec.together(lambda v: _to(size, v), d)


StableSAM = Renormalized


def _is_plain(probe: Probe, batch: Any) -> bool:
    """Whether the probe asks for the plain gradient of the step."""
    return (
        probe.batch is batch
        and probe.at is None
        and probe.grad
        and probe.sync
        and probe.wrt is None
        and probe.loss_fn is None
    )


def _to(size: Tensor, v: Vec) -> Vec:
    # Not vec.inverse, so that the factor is exactly 1 if the inner direction is the plain gradient.
    current = vec.norm(v)
    return vec.scale(v, torch.where(current == 0, torch.zeros_like(current), size / current))
