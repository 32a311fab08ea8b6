"""Section amp: autocast and the GradScaler."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from conformance import TEXTS

from gpu.checks import Check
from gpu.training import Training, deterministic, half_precision, here, largest_difference

STEPS = 6
SAME = "bf16 autocast around the step gives the weights of bf16 autocast inside the loss function"
RECOVERED = "after fp16 gradients overflow, the step is skipped, the scale falls, and training goes on"
SCALE = 2.0**40  # times a gradient of 1e-2 this is far above 65504, the largest number of fp16
LESS = 2.0**-14  # the factor by which the scale falls, so that two overflows are enough


def checks() -> Iterator[Check]:
    """Every method both ways."""
    for text in TEXTS.values():
        # Autocast does not change arithmetic on vectors, so the two compute the same.
        yield Check(f"{text}, autocast", partial(_outside, text), SAME, 1e-4)
    for text in TEXTS.values():
        yield Check(f"{text}, overflow", partial(_overflow, text), RECOVERED)


def _outside(text: str) -> float:
    """The largest difference between the two places of autocast."""
    around = partial(torch.autocast, here().type, torch.bfloat16)
    with deterministic():  # other sums would round to other bf16 numbers
        inside = Training(text, dtype=torch.float32, loss=half_precision(torch.bfloat16)).run(STEPS)
        outside = Training(text, dtype=torch.float32, loss=_in_float).run(STEPS, around=around)
    return largest_difference(inside.weights(), outside.weights())


def _in_float(model: torch.nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """One loss per example, from logits in float32."""
    return torch.nn.functional.cross_entropy(model(batch[0]).float(), batch[1], reduction="none")


def _overflow(text: str) -> dict[str, float]:
    """Train from a scale that is too large; the figure is the number of skipped steps."""
    scaler = torch.amp.GradScaler(here().type, init_scale=SCALE, backoff_factor=LESS)
    training = Training(text, dtype=torch.float32, loss=half_precision(torch.float16), scaler=scaler)
    skipped = 0
    for number in range(STEPS):
        before, scale = training.weights(), scaler.get_scale()
        training.run(1, start=number)
        moved = any(not torch.equal(x, y) for x, y in zip(before, training.weights(), strict=True))
        fell = scaler.get_scale() < scale
        if fell == moved:
            raise AssertionError(
                f"in step {number} the scale {'fell' if fell else 'stayed'} and weights moved: {moved}"
            )
        skipped += fell
    if not 0 < skipped < STEPS:
        raise AssertionError(f"{skipped} of {STEPS} steps overflowed")
    if not all(bool(torch.isfinite(t).all()) for t in training.weights()):
        raise AssertionError("weights are not finite")
    return {"skipped steps": skipped}
