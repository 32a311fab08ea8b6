"""Accelerate on two processes; run by torchrun from test_accelerate_ranks.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate", exc_type=(ImportError, RuntimeError))

import torch

import lowland
from integrations import launch
from integrations.loops import Loop, by_hand, data, fresh, losses, net
from integrations.methods import METHODS
from integrations.trajectories import apart, sgd
from lowland.integrations.accelerate import Sharpness


def trajectory(kind: str, k: int, folder: Path, clip: float = 0.0) -> list[Any]:
    model, twin = net(), net()
    Loop(kind, model, k, clip=clip).train()
    by_hand(kind, twin, k, clip=clip, ranks=2)
    return [apart(model, twin), launch.same_on_all_ranks(model)]


def resumed(kind: str, folder: Path) -> list[Any]:
    """S10: SAMPa holds a batch of its rank; with rank 0's everywhere it was 0.02 away."""
    whole = Loop(kind, net(), 2)
    whole.train(last=6).save(folder)
    whole.train(first=6)
    again = Loop(kind, net(), 2).load(folder).train(first=6)
    return [apart(whole.model, again.model), launch.same_on_all_ranks(again.model)]


def reductions(folder: Path) -> float:
    loop, count = Loop("sam", net(), 4), [0]

    def note(state, bucket):  # type: ignore[no-untyped-def]  # DDP wants no other annotation than its own
        count[0] += 1
        done = torch.distributed.all_reduce(bucket.buffer().div_(2), async_op=True).get_future()
        return done.then(lambda f: f.value()[0])

    loop.model.register_comm_hook(None, note)
    loop.train()
    return count[0] / loop.sharp.engine.step


def unprepared(folder: Path) -> list[str]:
    """S8: an engine on the bare model left ranks 0.12 apart."""
    accelerator, model = fresh(), net()
    _, optimizer = accelerator.prepare(model, sgd(model))
    said = []
    for make in (
        lambda: Sharpness(accelerator, METHODS["sam"], model, optimizer, losses),
        lambda: lowland.Engine(METHODS["sam"], model, optimizer, losses).backward(data(8).tensors),
    ):
        try:
            make()
            said.append("nothing")
        except lowland.LowlandError as error:
            said.append(str(error))
    return said


CASES: dict[str, Callable[[Path], Any]] = {
    **{
        f"{kind} k={k}": partial(trajectory, kind, k) for kind in ("sam", "sampa", "looksam", "msam") for k in (1, 2, 4)
    },
    "clip": partial(trajectory, "looksam", 2, clip=0.05),
    **{f"resume {kind}": partial(resumed, kind) for kind in ("sam", "sampa", "looksam", "msam")},
    "reductions": reductions,
    "unprepared": unprepared,
}

if __name__ == "__main__":
    launch.run(CASES)
