"""transformers' Trainer on two processes; run by torchrun from test_transformers_ranks.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", exc_type=(ImportError, RuntimeError))

import torch

from integrations import hf, launch
from integrations.hf import Tiny, by_hand, classes, llama, texts, trained, twins
from integrations.trajectories import apart
from lowland.integrations.transformers import SharpnessTrainer

STEPS: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}


def trajectory(kind: str, task: str, k: int, folder: Path, clip: float = 0.0) -> list[Any]:
    model, twin = twins(Tiny if task == "classes" else llama)
    data = classes() if task == "classes" else texts()
    trained(kind, folder, model, data, k, max_grad_norm=clip)
    by_hand(kind, twin, data, k, ranks=2, clip=clip)
    return [apart(model, twin), launch.same_on_all_ranks(model)]


def plain(folder: Path) -> float:
    model, twin = twins(Tiny)
    trained("plain", folder, model, classes(), 2, max_grad_norm=0.05)
    trained(None, folder, twin, classes(), 2, max_grad_norm=0.05)
    return apart(model, twin)


def resumed(kind: str, folder: Path) -> list[Any]:
    """S10: SAMPa holds a batch of its rank; with rank 0's everywhere it is 0.02 away."""
    whole, model = twins(Tiny)
    trained(kind, folder, whole, classes(), 2, **STEPS)
    trained(kind, folder, model, classes(), 2, resume=str(folder / "checkpoint-3"), **STEPS)
    return [apart(whole, model), launch.same_on_all_ranks(model)]


class Counting(SharpnessTrainer):
    """Counts the all-reduces of DistributedDataParallel, of which each carries the whole small model."""

    reductions = 0

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.reductions:
            Counting.reductions = 1

            def note(state, bucket):  # type: ignore[no-untyped-def]  # DDP wants no other annotation than its own
                Counting.reductions += 1
                done = torch.distributed.all_reduce(bucket.buffer().div_(2), async_op=True).get_future()
                return done.then(lambda f: f.value()[0])

            model.register_comm_hook(None, note)
        return super().training_step(model, *args, **kwargs)


def reductions(folder: Path) -> float:
    trained("sam", folder, Tiny(), classes(), 4, of=Counting)
    return (Counting.reductions - 1) / hf.STEPS


CASES: dict[str, Callable[[Path], Any]] = {
    **{
        f"{kind} {task} k={k}": partial(trajectory, kind, task, k)
        for kind in ("sam", "sampa", "looksam", "msam")
        for task, k in (("classes", 1), ("classes", 2), ("classes", 4), ("texts", 1), ("texts", 2))
    },
    "clip": partial(trajectory, "looksam", "classes", 2, clip=0.05),
    "plain": plain,
    **{f"resume {kind}": partial(resumed, kind) for kind in ("sam", "sampa", "looksam", "msam")},
    "reductions": reductions,
}

if __name__ == "__main__":
    launch.run(CASES)
