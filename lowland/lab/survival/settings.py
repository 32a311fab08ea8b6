"""The settings of a survival measurement: which changes of the weights are measured, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lowland.core import checks
from lowland.core.errors import ArgumentError
from lowland.lab.quantize import Granularity, check_quantizer

Norm = Literal["filter", "tensor"]


@dataclass(frozen=True, kw_only=True)
class Survival:
    """How a trained model survives changes of its weights.

    Args:
        bits: Bits to which the weights are quantized, each from 2 to 8; none leaves quantization out.
        granularity: channel has one scale for each output channel, tensor one for each weight tensor.
        noise: Levels of Gaussian noise, each > 0: the root mean square of the noise relative to that of the weights.
            None leaves noise out.
        norm: What a level of noise refers to: the weights of each filter (output channel), or of each tensor.
        draws: Draws of the noise for each level, >= 1.
        forget: The second task on which the model is trained, to measure what it forgets: permuted for the images of
            the run's task with their pixels in another order, or a task with inputs and classes of the same shape, such
            as digits:noise=0.4. Left out, forgetting is not measured.
        forget_steps: Steps of training on the second task, >= 1.
        forget_lr: Peak learning rate on the second task, > 0; left out, that of the task's recipe.
        seed: Seed of the noise and of the order of the pixels, >= 0. The training on the second task depends on the
            seed of the run.
        examples: Only the first examples of each part are evaluated, >= 1; left out, all.
        refresh_stats: Training batches over which running statistics of BatchNorm are recomputed after each change, >=
            0; 0 keeps the statistics of the unchanged weights.
    """

    bits: tuple[int, ...] = (8, 4, 3)
    granularity: Granularity = "channel"
    noise: tuple[float, ...] = (0.01, 0.03, 0.1)
    norm: Norm = "filter"
    draws: int = 5
    forget: str | None = None
    forget_steps: int = 200
    forget_lr: float | None = None
    seed: int = 0
    examples: int | None = None
    refresh_stats: int = 0

    def __post_init__(self) -> None:
        for name in ("bits", "noise"):
            if not isinstance(getattr(self, name), tuple | list):
                raise ArgumentError(
                    f"{name} must be a tuple, but is {getattr(self, name)!r}; write {name}=(), which leaves it out, or "
                    "several values"
                )
        for bits in self.bits:
            check_quantizer(bits, self.granularity)
        check_quantizer(8, self.granularity)
        for level in self.noise:
            _above_zero("noise", level, "0.03 is 3 % of the weights")
        checks.one_of("norm", self.norm, ("filter", "tensor"))
        checks.integer("draws", self.draws, 1, "5 gives a standard error")
        checks.integer("forget_steps", self.forget_steps, 1, "take 200; without forget nothing is trained")
        if self.forget_lr is not None:
            _above_zero("forget_lr", self.forget_lr, "left out, it is that of the task's recipe")
        checks.integer("seed", self.seed, 0, "number seeds from 0")
        if self.examples is not None:
            checks.integer("examples", self.examples, 1, "left out, all examples are evaluated")
        checks.integer("refresh_stats", self.refresh_stats, 0, "0 keeps the statistics; 50 recomputes them")


def _above_zero(name: str, value: float, remedy: str) -> None:
    checks.at_least(name, value, 0, remedy)
    if value == 0:
        raise ArgumentError(f"{name} must be > 0, but is {value!r}; {remedy}")
