"""SAM whose ascent raises errors, not the training loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody knows it by

from lowland.core import checks
from lowland.core.errors import ArgumentError, LossError, UsageError
from lowland.core.loss import Loss, LossFn
from lowland.core.probe import Plan
from lowland.methods.base import Perturbing

if TYPE_CHECKING:
    from lowland.engine import Engine

GAMMA = math.log(math.e - 1)  # so that phi(0) = 0, the value at which a class is as likely as the true one


@dataclass(frozen=True, kw_only=True)
class BiSAM(Perturbing):
    """Bilevel SAM: the perturbation raises a bound on the number of errors, the descent lowers the training loss.

    ::

        Q(w) = mean_i 1/mu * log sum_j exp(mu * phi(z_ij - z_iy))     z_i the logits, y the true class of example i
        d    = g(w + rho * q/||q||)  with  q the gradient of Q at w

    phi bounds the 0-1 step from below: ``tanh(alpha * z)``, or ``1 - log(1 + exp(log(e - 1) - z))``.

    Args:
        rho: Radius, >= 0, in parameter norm.
        geometry: How q becomes a displacement.
        ascent_gradient: "mean" over the ranks, or each rank's own ("local"); see :class:`SAM`.
        surrogate: The ascent loss, ``(model, batch) -> losses`` of shape (B,) or (). None is Q, on the logits that the
            training loss gets from the model, and on the true classes in ``batch[1]`` or ``batch["targets"]``.
        mu: Sharpness of the log-sum-exp, > 0; larger values are closer to the maximum; for Q only.
        alpha: Steepness of tanh, > 0; for Q with "tanh" only.
        phi: "tanh" or "log"; for Q only.

    Cost: 2 gradients per step, one after the other; 1 P of memory; 2 all-reduces of P under data parallelism, 1 with
    ``ascent_gradient="local"``.

    Differs: The release omits the constant factor 1/mu, which does not change the direction. Weight decay is the
    base optimizer's. The default phi is "tanh"; the default of the release's training script is "log".

    Invariants: With the training loss as surrogate it is SAM; rho = 0 is the base optimizer.

    Use: For classification. ``backward`` returns the loss at the displaced weights.

    Avoid: For other tasks without your own surrogate. With ``passes`` or a closure, because the ascent has another
    loss than the caller's.

    Reference: Xie, Latorre, Antonakopoulos, Pethick, Cevher: Improving SAM Requires Rethinking its Optimization
    Formulation. ICML 2024, arXiv 2407.12993.
    """

    surrogate: LossFn | None = None
    mu: float = 1.0
    alpha: float = 0.1
    phi: Literal["tanh", "log"] = "tanh"
    needs_batch: ClassVar[bool] = True
    whole_gradient: ClassVar[bool] = False

    def check(self) -> None:
        """See :meth:`lowland.methods.base.Method.check`."""
        for name in ("mu", "alpha"):
            checks.at_least(name, getattr(self, name), 0, "the paper takes mu=1 and alpha=0.1")
            if getattr(self, name) == 0:
                raise ArgumentError(f"{name} must be > 0, but is 0; the paper takes mu=1 and alpha=0.1")
        checks.one_of("phi", self.phi, ("tanh", "log"))
        if self.surrogate is not None and not callable(self.surrogate):
            raise ArgumentError(
                f"surrogate must be a loss (model, batch) -> losses, but is {self.surrogate!r}; None is the built-in"
            )
        if self.surrogate is not None and (self.mu, self.alpha, self.phi) != (1.0, 0.1, "tanh"):
            raise ArgumentError(
                f"mu, alpha and phi must be left alone where surrogate is given, but are {self.mu}, {self.alpha} and "
                f"{self.phi!r}; they belong to the built-in surrogate"
            )

    def plan(self, engine: Engine, batch: Any) -> Plan:
        """See :meth:`lowland.methods.base.Method.plan`."""
        loss_fn = engine.bound(self.surrogate) or self._built_in(engine.loss_fn)
        here = yield self.probe(batch, loss_fn=loss_fn)
        up = self.probe(batch, at=self.ascent_(engine, here.grad))
        del here
        there = yield up
        return there.loss, there.grad

    def _built_in(self, training: LossFn | None) -> LossFn:
        if training is None:
            raise UsageError(
                "BiSAM takes its logits from the training loss, but loss_fn is None; make the Engine with loss_fn=… "
                "and call engine.backward(batch)"
            )

        def surrogate(model: Any, batch: Any) -> Tensor | Loss:
            recorder = _Recorder(model)
            trained = training(recorder, batch)
            losses = surrogate_losses(recorder.logits(), _targets(batch), mu=self.mu, alpha=self.alpha, phi=self.phi)
            aux = trained.aux if isinstance(trained, Loss) else None
            return losses if aux is None else Loss(losses.sum(), len(losses), aux)

        return surrogate


def surrogate_losses(
    logits: Tensor, targets: Tensor, *, mu: float = 1.0, alpha: float = 0.1, phi: str = "tanh"
) -> Tensor:
    """``1/mu * log sum_j exp(mu * phi(z_j - z_y))`` for every example.

    Args:
        logits: z, shape ``(B, C)``.
        targets: y, the true classes, integers of shape ``(B,)``.
        mu: Sharpness of the log-sum-exp, > 0; larger values are closer to the maximum.
        alpha: Steepness of tanh, > 0.
        phi: "tanh" or "log".

    Returns:
        The losses, shape ``(B,)``.

    Raises:
        LossError: Logits or targets have other shapes, or targets are not integers in range.
    """
    integers = not (targets.is_floating_point() or targets.is_complex())
    if logits.dim() != 2 or targets.shape != logits.shape[:1] or not integers:
        raise LossError(
            "BiSAM needs logits (B, C) and integer classes (B,), but has logits of shape "
            f"{tuple(logits.shape)} and targets {targets.dtype} of shape {tuple(targets.shape)}; pass "
            "BiSAM(surrogate=…), a loss (model, batch) -> (B,) to raise instead"
        )
    try:
        torch._assert_async(((targets >= 0) & (targets < logits.shape[1])).all())
    except RuntimeError:  # on a CPU; elsewhere it stops the program later
        raise LossError(
            f"targets must be classes in 0..{logits.shape[1] - 1}, but one is not; leave out examples without a class, "
            "or pass BiSAM(surrogate=…)"
        ) from None
    margins = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    margins = margins - margins.gather(1, targets[:, None])
    bounded = torch.tanh(alpha * margins) if phi == "tanh" else 1 - F.softplus(GAMMA - margins)
    return torch.logsumexp(mu * bounded, dim=1) / mu


class _Recorder:
    """Replaces the model while the training loss runs, and records the model's outputs."""

    def __init__(self, model: Callable[..., Any]) -> None:
        self._model = model
        self._outputs: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._outputs.append(self._model(*args, **kwargs))
        return self._outputs[-1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def logits(self) -> Tensor:
        """The model's output, or the ``.logits`` of the output.

        Raises:
            LossError: The loss called the model not exactly once, or the output has no tensor of logits.
        """
        logits = [getattr(output, "logits", output) for output in self._outputs]
        if len(logits) != 1 or not isinstance(logits[0], Tensor):
            raise LossError(
                "BiSAM takes its logits from the training loss, which must call the model it is given once and get a "
                f"tensor, or something with .logits, but it called it {len(logits)} times; pass BiSAM(surrogate=…)"
            )
        return logits[0]


def _targets(batch: Any) -> Tensor:
    if isinstance(batch, dict):
        targets = next((batch[key] for key in ("targets", "labels") if key in batch), None)
    else:
        targets = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
    if not isinstance(targets, Tensor):
        raise LossError(
            'BiSAM needs the true classes as batch[1] or batch["targets"], but finds none; pass BiSAM(surrogate=…)'
        )
    return targets
