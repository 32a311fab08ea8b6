"""A perturbation for every micro-batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lowland.core import checks, vec
from lowland.core.probe import Plan, Probe, Reading
from lowland.methods.base import Method

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class MicroSAM(Method):
    """mSAM: every micro-batch is perturbed by its own gradient, and the resulting gradients are averaged.

    ``d = sum_j |B_j|/|B| * g(w + rho * g_j/||g_j||; B_j)`` with ``g_j = g(w; B_j)``

    Args:
        rho: Radius, >= 0, in parameter norm.
        geometry: How each micro-batch's gradient becomes a displacement.
        m: Number of micro-batches, >= 1; 1 is SAM. A batch of fewer examples is cut into single ones.

    Cost: 2 gradients per step, in 2 passes per micro-batch on one device; 2 P of memory; 1 all-reduce of P
    under data parallelism, because each rank perturbs by its own micro-batches' gradients.

    Differs: m is the number of micro-batches, as in the paper; Foret et al. call m their size. BatchNorm
    sees micro-batches, so its statistics are updated m times a step, as in gradient accumulation.

    Invariants: m = 1 is SAM; rho = 0 is the gradient of the whole batch; the order of the micro-batches does not
    matter; on m identical micro-batches it is SAM on one of them; a model that is linear in its weights, with a linear
    loss, has nothing to perturb.

    Use: With large batches: activations take the memory of one micro-batch, and under data parallelism one
    all-reduce is enough.

    Avoid: With small batches, whose short passes leave the device idle. In a comparison with SAM on a model with
    BatchNorm, which then sees other batches.

    Reference: Behdin, Song, Gupta, Keerthi, Acharya, Ocejo, Dexter, Khanna, Durfee, Mazumder: mSAM:
    Micro-Batch-Averaged Sharpness-Aware Minimization. 2023, arXiv 2302.09693.
    """

    m: int = 4
    needs_batch: ClassVar[bool] = True
    whole_gradient: ClassVar[bool] = False
    synchronized: ClassVar[bool] = False

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        checks.integer("m", self.m, 1, "m=1 is SAM")

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        parts, size = engine.batches.chunk(batch, self.m), engine.batches.size(batch)
        loss: Any = 0.0
        weight_sum: Any = 0.0
        total: Any = None
        for start in range(0, len(parts), engine.width):
            wave = parts[start : start + engine.width]
            here = yield tuple(Probe(s, sync=False) for s in wave)
            weights = [_weight(h, size) for h in here]
            weight_sum = weight_sum + sum(weights)
            loss = loss + sum(weight * h.loss for weight, h in zip(weights, here, strict=True))
            up = tuple(
                Probe(s, at=self.ascent_later(engine, h.grad), sync=False) for s, h in zip(wave, here, strict=True)
            )
            del here  # frees the gradients, which would otherwise accumulate over the micro-batches
            there = yield up
            for weight, grad in zip(weights, [t.grad for t in there], strict=True):
                if total is None:  # the first gradient takes in the others
                    total = grad
                    vec.scale_(total, weight)
                else:
                    vec.add_(total, grad, weight)
            del there, grad
        if isinstance(weight_sum, Tensor):  # the counts of a Loss are known only after the forward passes
            weight_sum = torch.where(weight_sum == 0, 1, weight_sum)
            vec.scale_(total, 1 / weight_sum)
            loss = loss / weight_sum
        return torch.as_tensor(loss), total


def _weight(reading: Reading, size: int) -> float | Tensor:
    """The weight of a micro-batch: its fraction of the examples, or with a ``Loss`` a multiple of its count."""
    if isinstance(reading.divisor, Tensor):
        return (reading.divisor / size).to(reading.loss.dtype)
    return 1.0 if reading.divisor is None else reading.divisor / size
