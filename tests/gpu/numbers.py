"""Section numbers: every method with every optimizer computes on a GPU what it computes on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from conformance import ALL, TEXTS

from gpu.checks import Check
from gpu.training import CPU, ONLY_ON_A_GPU, OPTIMIZERS, Training, difference, suits, there_are_gpus

STEPS = 8
MOST = 1e-8  # sums of float64 in another order differ by 1e-15, and eight steps may enlarge this
PLAIN = {"sgd-fused": "sgd", "adamw-fused": "adamw", "adamw-capturable": "adamw"}  # the same rule in other kernels


def checks() -> Iterator[Check]:
    """Every method with SGD; lowland's own methods with their defaults also with all other optimizers."""
    two = "the GPU and the CPU" if there_are_gpus() else "the branches of a GPU and those of a CPU, both on this CPU,"
    expectation = f"{two} give the same weights after {STEPS} steps in float64, up to {MOST:g}"
    for text in ALL:
        for optimizer in OPTIMIZERS if text in TEXTS.values() else ["adamw" if "preconditioned" in text else "sgd"]:
            if suits(text, optimizer):
                lacking = optimizer == ONLY_ON_A_GPU and not there_are_gpus()
                missing = "torch refuses capturable=True on a CPU" if lacking else ""
                name = f"{text} with {optimizer}"
                yield Check(name, partial(_difference, text, optimizer), expectation, MOST, missing=missing)


def _difference(text: str, optimizer: str) -> float:
    found = Training(text, optimizer).run(STEPS)
    expected = Training(text, PLAIN.get(optimizer, optimizer), device=CPU, gpu_branches=False).run(STEPS)
    return difference(found, expected)
