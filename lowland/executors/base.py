"""What an executor is, and what it works on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from lowland.modes import SharedRNG
from lowland.probe import LossFn, Probe, Reading
from lowland.vec import Vec


class Work:
    """A model under training, as executors see it, and what the step under way has met so far.

    Attributes:
        model: The model; its weights move only inside a pass.
        params: Its trainable parameters.
        loss_fn: The training loss, ``(model, batch) -> (B,) or ()``; None where the caller runs forward.
        scaler: A GradScaler or None.
        micro_batch: Most examples in one forward pass; None means no limit.
        rng: Rewinds random numbers between the passes of a step; None lets them run free.
        reached: Which parameters any backward pass of this step has reached.
        finite: Whether all passes of this step are finite, shape ``()``; None without a scaler.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Vec,
        *,
        loss_fn: LossFn | None,
        scaler: Any,
        micro_batch: int | None,
        rng: str,
    ) -> None:
        self.model = model
        self.params = params
        self.loss_fn = loss_fn
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.micro_batch = micro_batch
        self.rng = SharedRNG(params[0].device) if rng == "shared" else None
        self.begin()

    def begin(self) -> None:
        """Forget the last step."""
        self.reached = [False] * len(self.params)
        self.finite: Tensor | None = None
        if self.rng is not None:
            self.rng.begin()

    def check(self, finite: Tensor) -> None:
        """The step is finite only if this pass is, too."""
        self.finite = finite if self.finite is None else self.finite & finite

    def scale(self) -> Tensor | None:
        """The loss scale of the scaler, shape ``()`` on the device; None without one."""
        if self.scaler is None:
            return None
        one = torch.ones((), device=self.params[0].device)
        return self.scaler.scale(one)  # type: ignore[no-any-return]


class Executor(ABC):
    """Answers probes.

    Attributes:
        width: How many probes it answers at once; plans that can choose ask for as many together.
    """

    width: int = 1

    @abstractmethod
    def run(self, work: Work, probes: tuple[Probe, ...]) -> tuple[Reading, ...]:
        """The readings of ``probes``, in their order. Weights are bit-identical before and after."""
