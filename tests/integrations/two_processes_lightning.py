"""Lightning on two processes; run by torchrun from test_lightning_ranks.py."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning", exc_type=(ImportError, RuntimeError))

import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import cross_entropy

import lowland
from integrations import launch
from integrations.loops import net
from integrations.methods import METHODS
from integrations.pl import Module, by_hand, fitted, loader, trainer
from integrations.trajectories import apart

warnings.filterwarnings("ignore")
DDP: dict[str, Any] = {"strategy": "ddp", "devices": 2}


def trajectory(kind: str, folder: Path, k: int = 1, clip: float = 0.0) -> list[Any]:
    module, twin = Module(), net()
    fitted(kind, module, accumulate_grad_batches=k, gradient_clip_val=clip or None, **DDP)
    by_hand(kind, twin, k, clip=clip, ranks=2)
    return [apart(module.net, twin), launch.same_on_all_ranks(module.net)]


def plain(folder: Path) -> float:
    ours, theirs = Module(), Module()
    fitted("plain", ours, accumulate_grad_batches=1, **DDP)
    fitted(None, theirs, accumulate_grad_batches=1, **DDP)
    return apart(ours.net, theirs.net)


def resumed(kind: str, folder: Path) -> list[Any]:
    """S10: SAMPa holds a batch of its rank; with rank 0's everywhere it was 0.037 away."""
    found = []
    for path in (None, folder / "step=4.ckpt"):
        module = Module()
        keep = ModelCheckpoint(dirpath=folder, every_n_train_steps=4, save_top_k=-1, filename="{step}")
        fitted(kind, module, keep, enable_checkpointing=True, ckpt_path=path, **DDP)
        found.append(module)
        dist.barrier()
    return [apart(found[0].net, found[1].net), launch.same_on_all_ranks(found[1].net)]


def unwrapped(folder: Path) -> str:
    """S8: an engine on the module itself, in manual optimization, left ranks 0.54 apart."""

    class Manual(Module):
        engine: Any = None

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, index: int) -> Any:
            def loss_fn(model: Any, batch: Any) -> Any:
                return cross_entropy(model(batch[0]), batch[1])

            lowland.Engine(METHODS["sam"], self.net, self.optimizers(), loss_fn).backward(batch)

    try:
        trainer(**DDP).fit(Manual(), loader())
    except Exception as error:
        return str(error)
    return "nothing"


CASES: dict[str, Callable[[Path], Any]] = {
    **{f"{kind} k=1": partial(trajectory, kind) for kind in ("sam", "sampa", "looksam", "msam")},
    "sam k=2": partial(trajectory, "sam", k=2),
    "msam k=2": partial(trajectory, "msam", k=2),
    "clip": partial(trajectory, "looksam", clip=0.05),
    "plain": plain,
    **{f"resume {kind}": partial(resumed, kind) for kind in ("sam", "sampa", "looksam", "msam")},
    "unwrapped": unwrapped,
}

if __name__ == "__main__":
    launch.run(CASES)
