"""SAM on random examples of the batch, with higher probabilities for sensitive examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lowland.core import batch as batches
from lowland.core import checks
from lowland.core.errors import ArgumentError, BatchError
from lowland.core.probe import Plan
from lowland.core.schedule import Schedule
from lowland.core.vec import Vec
from lowland.methods.base import Perturbing

if TYPE_CHECKING:
    from lowland.engine import Engine


@dataclass(frozen=True, kw_only=True)
class AUSAM(Perturbing):
    """SAM on a random part of the batch, in which sensitive examples have higher probabilities.

    ::

        z_i = fmin + (f - fmin) * scaled score_i        f rises from fmin to fmax during the ramp
        S   = alpha * |B| examples, drawn without replacement, with probabilities ~ z
        d   = g(w + rho * g/||g||; S)  with  g = g(w; S)
        score_i = the mean of |loss_i(w + e) - loss_i(w)| over the times that example i was drawn

    Scores are scaled to [0, 1] over the batch. An example that was never drawn gets the largest score of the batch.

    Args:
        rho: Radius, >= 0, in parameter norm.
        geometry: How the gradient becomes a displacement.
        ascent_gradient: "mean" over the ranks, or each rank's own ("local"); see :class:`SAM`.
        alpha: Fraction of the batch that is drawn, in (0, 1]; rounded down, at least one example.
        fmin: Weight of the least sensitive example in the draw, > 0.
        fmax: Weight of the most sensitive example after the ramp, >= fmin.
        ramp: Length of the rise of f to fmax: an integer >= 0 is a number of steps, a number in (0, 1) a fraction of
            the training; the release takes 30 of 200 epochs.
        warmup: Length of the first phase, which uses full batches to fill the scores, in steps or as a fraction like
            ``ramp``; the release takes 1 epoch.
        examples: N, the size of the training set. It must be given before training.

    Cost: 2 * alpha gradients per step, one after the other, so 1 with the default; 1 P of memory and 2 numbers per
    training example; 2 all-reduces of P under data parallelism, 1 with ``ascent_gradient="local"``.

    Differs: As in the release, no weights correct for unequal probabilities. f rises in every step of the ramp; in the
    release it rises once per epoch. Equal scores give equal probabilities; the release divides zero by zero. Batches
    must contain the positions of the examples, as ``(inputs, targets, index)`` or under the key ``"index"``; other
    integers in this place are not detected. BatchNorm statistics are those of the drawn part. With dropout, scores
    compare losses under two masks, unless ``rng="shared"``.

    Invariants: alpha = 1 is SAM; on a batch of identical examples it is SAM; each drawing step adds floor(alpha * |B|)
    to the counts.

    Use: To halve SAM's cost if half a batch still keeps the device busy.

    Avoid: In a training of one epoch, which draws no example by its score. With a loss function that cannot return
    one loss per example, or batches without the positions of their examples.

    Reference: Deng, Pang, Zhang, Guo: Asymptotic Unbiased Sample Sampling to Speed Up Sharpness-Aware Minimization.
    AAAI 2025, arXiv 2406.08001.
    """

    rho: float | Schedule = 0.1
    alpha: float = 0.5
    fmin: float = 0.1
    fmax: float = 0.5
    ramp: int | float = 0
    warmup: int | float = 0
    examples: int | None = None
    needs_batch: ClassVar[bool] = True
    whole_gradient: ClassVar[bool] = False

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        checks.share("alpha", self.alpha, "1 is SAM", "0.5 draws half of the batch")
        checks.share("fmin", self.fmin, "0.1 is the release's value", "0 would never draw some examples, 0.1 is usual")
        checks.at_least("fmax", self.fmax, self.fmin, "fmax=fmin draws all alike")
        checks.phase("ramp", self.ramp, 0, "0 begins with fmax")
        checks.phase("warmup", self.warmup, 0, "0 draws from the first step on")
        if self.examples is not None:
            checks.integer("examples", self.examples, 1, "give the size of the training set")

    @property
    def needs_progress(self) -> bool:
        """See :meth:`lowland.methods.base.Method.needs_progress`."""
        return super().needs_progress or isinstance(self.ramp, float) or isinstance(self.warmup, float)

    def init(self, params: Vec) -> dict[str, Any]:
        """See :meth:`lowland.methods.base.Method.init`."""
        if self.examples is None:
            raise ArgumentError(
                "examples must be given before training, but is None; give the size of the training set, for whose "
                "examples AUSAM keeps scores: AUSAM(examples=len(dataset))"
            )
        dtype = torch.promote_types(params[0].dtype, torch.float32)  # bf16 cannot count beyond 256
        zeros = torch.zeros(self.examples, dtype=dtype, device=params[0].device)
        return {"sums": zeros, "counts": zeros.clone(), "t": 0}

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        index, t = self._positions(batch, engine), engine.memory["t"]
        engine.memory["t"] = t + 1
        size = engine.batches.size(batch)
        is_warmup = _progress(engine, t, self.warmup) < 1
        count = size if is_warmup else batches.part(self.alpha, size)
        drawn = batch
        if count < size:
            chosen = self._draw(engine, index, count, t)
            drawn, index = engine.batches.take(batch, chosen), index[chosen]
        here = yield self.probe(drawn)
        loss, before = here.loss, self.per_example(here)
        up = self.probe(drawn, at=self.ascent_(engine, here.grad))
        del here
        there = yield up
        self._score(engine.memory, index, (self.per_example(there) - before).abs())
        return loss, there.grad

    def reshard(self, shares: Sequence[dict[str, Any]], number: int, count: int) -> dict[str, Any]:
        """Give every rank an equal part of the summed sums and counts; see :meth:`Method.reshard`."""
        tables = ("sums", "counts")
        others = [{k: v for k, v in memory.items() if k not in tables} for memory in shares]
        parts = {k: torch.stack([memory[k] for memory in shares]).sum(0) / count for k in tables}
        return super().reshard(others, number, count) | parts

    def _positions(self, batch: Any, engine: Engine) -> Tensor:
        """The positions of the batch's examples in the training set, shape ``(B,)``."""
        assert self.examples is not None  # init refuses it
        index, device = batches.indices(batch, "AUSAM"), engine.params[0].device
        if index.device != device:
            raise BatchError(
                f"the positions in a batch must be on the model's device, {device}, but are on {index.device}; move "
                "the batch there before engine.backward(batch), not inside loss_fn"
            )
        try:
            torch._assert_async(((index >= 0) & (index < self.examples)).all())
        except RuntimeError:  # on a CPU; elsewhere it stops the program later
            raise BatchError(
                f"the positions in a batch must be in 0..{self.examples - 1}, because examples = {self.examples}, but "
                "one is not; give AUSAM(examples=…) the size of the training set"
            ) from None
        return index

    def _draw(self, engine: Engine, index: Tensor, count: int, t: int) -> Tensor:
        """Draw ``count`` indices into the batch without replacement."""
        sums, counts = engine.memory["sums"][index], engine.memory["counts"][index]  # (B,)
        drawn = counts > 0
        scores = torch.where(drawn, sums / torch.where(drawn, counts, 1), 0)  # after reshard a count may be below 1
        scores = torch.where(drawn, scores, scores.max())
        low, high = scores.min(), scores.max()
        scaled = torch.where(high > low, (scores - low) / (high - low).clamp_min(torch.finfo(scores.dtype).tiny), 0)
        weights = self.fmin + _progress(engine, t, self.ramp) * (self.fmax - self.fmin) * scaled
        # The indices of the smallest exponential times with these rates are a weighted draw without replacement.
        uniform = torch.rand(index.shape, generator=self.generator(engine), device=index.device, dtype=weights.dtype)
        times = -torch.log1p(-uniform)
        return torch.topk(weights / times, count).indices

    def _score(self, memory: dict[str, Any], index: Tensor, rise: Tensor) -> None:
        finite = torch.isfinite(rise)
        rise = torch.where(finite, rise, 0).to(memory["sums"].dtype)
        memory["sums"] = memory["sums"].index_add(0, index, rise)
        memory["counts"] = memory["counts"].index_add(0, index, finite.to(rise.dtype))


def _progress(engine: Engine, t: int, phase: int | float) -> float:
    """The completed fraction of a phase before step ``t``, in [0, 1]."""
    if phase == 0:
        return 1.0
    return min((engine.progress if isinstance(phase, float) else t) / phase, 1.0)
