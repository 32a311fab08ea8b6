"""SAM on an AMSGrad-type optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowland.core.errors import UsageError
from lowland.methods.sam import SAM

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class AdaSAM(SAM):
    """SAM's gradient in the moments of AMSGrad: a preset of SAM for an adaptive base optimizer.

    ::

        d    = g(w + rho * g/||g||)
        m    = b1 m + (1 - b1) d,   v = b2 v + (1 - b2) d^2,   v^ = max(v^, v),   w -= lr * m / sqrt(v^)

    The first line is this method's, the second belongs to the base optimizer: give the engine
    ``torch.optim.Adam(..., amsgrad=True)``, as the command line does.

    Args:
        rho: Radius, >= 0, in parameter norm; see :class:`SAM`.
        geometry: How the gradient becomes a displacement; see :class:`SAM`.
        ascent_gradient: "mean" over the ranks, or each rank's own ("local"); see :class:`SAM`.

    Cost: 2 gradients per step, one after the other; 1 P of memory besides the optimizer's moments; 2 all-reduces of P
    under data parallelism, 1 with ``ascent_gradient="local"``.

    Differs: torch's Adam corrects the bias of both moments and adds eps to the root, which the paper's form does not;
    with ``lr * (1 - b1^t) / sqrt(1 - b2^t)`` at step t and a vanishing eps the two are the same. The command line
    trains it with Adam(amsgrad=True) at a learning rate of its own and says so.

    Invariants: rho = 0 is the base optimizer; on SGD it is SAM; Adam and AdamW without amsgrad are refused.

    Use: For models that are usually trained with Adam, such as transformers.

    Avoid: For models that are usually trained with SGD, on which it mostly shows the difference between Adam and
    SGD.

    Reference: Sun, Shen, Chen, Ding, Tao: AdaSAM: Boosting Sharpness-Aware Minimization with Adaptive Learning Rate
    and Momentum for Training Deep Neural Networks. 2023, arXiv 2303.00565.
    """

    def validate(self, engine: Engine) -> None:
        """Refuse Adam or AdamW without AMSGrad, because this would be another method."""
        for optimizer in engine.optimizers:
            if any(group.get("amsgrad") is False for group in optimizer.param_groups):
                raise UsageError(
                    f"AdaSAM needs the maximum of AMSGrad, but the {type(optimizer).__name__} has amsgrad=False; "
                    "give torch.optim.Adam(..., amsgrad=True), or use SAM"
                )
