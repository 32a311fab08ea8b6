"""SAM that perturbs the model's Jacobian, not the derivative of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lowland.core.criterion import Cotangents, Criterion
from lowland.core.errors import UsageError
from lowland.core.probe import Plan
from lowland.methods.base import Perturbing

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class FunctionalSAM(Perturbing):
    """Functional SAM: the Jacobian of the outputs at the perturbed weights, times the loss's derivative at the weights.

    ::

        e = rho * g/||g||
        d = J(w + e)^T c    J the Jacobian of the outputs F, c = dL/dF at F(w)

    SAM's gradient ``J(w + e)^T dL/dF(F(w + e))`` also changes with the outputs themselves. Functional SAM leaves this
    part out, so that it lowers the curvature of the function and not that of the loss on top of it.

    Args:
        rho: Radius, >= 0, in parameter norm.
        geometry: How the gradient becomes a displacement; ``Preconditioned()`` reads the optimizer's second moment.
        ascent_gradient: "mean" over the ranks, or each rank's own ("local"); see :class:`SAM`.

    Cost: 2 gradients per step, one after the other, and a second backward of the criterion alone; 1 P of memory and one
    copy of the outputs; 2 all-reduces of P under data parallelism, 1 with ``ascent_gradient="local"``.

    Differs: No code of the authors was found. The rule is that of a summary of the paper, which agrees with its
    abstract. The returned loss is that at the weights. With dropout and ``rng="free"``, c is that of other masks than
    J, as SAM's two gradients are; the engine's ``rng="shared"`` gives both the same. The paper's preconditioned
    perturbation is ``geometry=Preconditioned()``, in lowland's reading.

    Invariants: If the loss is linear in the outputs, it is SAM; if the outputs are linear in the weights, it is the
    base optimizer; rho = 0 is the base optimizer.

    Use: For language models, where its authors find that SAM mostly changes the statistics of the logits. The loss
    function must be a :class:`lowland.Criterion`, so that the outputs are known.

    Avoid: For linear models, where it is the base optimizer at twice the price. With ``passes`` or a closure, because
    the second pass has another loss than the caller's. A criterion with trainable weights is refused.

    Reference: Singh, Mobahi, Agarwala, Dauphin: Avoiding Spurious Sharpness Minimization Broadens Applicability of
    SAM. ICML 2025, arXiv 2502.02407.
    """

    needs_batch: ClassVar[bool] = True
    whole_gradient: ClassVar[bool] = False

    def validate(self, engine: Engine) -> None:
        """See :meth:`lowland.methods.base.Method.validate`."""
        _criterion(engine)

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        cotangents = Cotangents(_criterion(engine))
        here = yield self.probe(batch, loss_fn=cotangents.taking)
        loss, up = here.loss, self.probe(batch, at=self.ascent_(engine, here.grad), loss_fn=cotangents.using)
        del here
        there = yield up
        return loss, there.grad


def _criterion(engine: Engine) -> Criterion:
    """The training loss in two parts.

    Raises:
        UsageError: The engine has an ordinary loss function, or none.
    """
    if not isinstance(engine.loss_fn, Criterion):
        raise UsageError(
            "FunctionalSAM needs the model's outputs apart from the loss, so loss_fn must be a lowland.Criterion, but "
            f"is {engine.loss_fn!r}; write loss_fn = lowland.Criterion(lambda model, batch: model(batch[0]), lambda "
            "outputs, batch: cross_entropy(outputs, batch[1])); for a task, define its training_criterion(recipe)"
        )
    return engine.loss_fn
