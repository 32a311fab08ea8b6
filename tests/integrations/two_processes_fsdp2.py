"""FSDP version 2 in Accelerate and in the Trainer on two processes; run by torchrun from test_fsdp2_ranks.py.

Both leave FSDP out on a CPU. So the kind of training is set by hand after the accelerator is made; everything else,
such as sharding, accumulation, clipping and checkpoints, is theirs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", exc_type=(ImportError, RuntimeError))
pytest.importorskip("accelerate", exc_type=(ImportError, RuntimeError))

from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from integrations import hf, launch, loops
from integrations.trajectories import adamw, sgd
from lowland.integrations.transformers import SharpnessTrainer

warnings.filterwarnings("ignore")
SAVED: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}


def shard(accelerator: Accelerator, **policy: Any) -> None:
    """Let an accelerator shard the model, as it does on GPUs."""
    state = accelerator.state
    state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False, **policy)
    PartialState._shared_state["distributed_type"] = state.distributed_type = DistributedType.FSDP


class Sharded(SharpnessTrainer):
    """Makes its optimizer itself, as the Trainer demands under FSDP."""

    make: Any = staticmethod(sgd)

    def __init__(self, *args: Any, optimizers: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        block = "LlamaDecoderLayer" if "Llama" in type(self.model).__name__ else "Linear"
        shard(self.accelerator, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=[block])
        self.is_fsdp_enabled = True

    def create_optimizer(self, model: Any = None) -> Any:
        self.optimizer = self.make(self.model)
        return self.optimizer


class Loop(loops.Loop):
    """A loop whose accelerator shards the model in blocks of more than 20 numbers."""

    def accelerator_of(self, k: int) -> Accelerator:
        accelerator = super().accelerator_of(k)
        shard(accelerator, auto_wrap_policy="size_based_wrap", min_num_params=20)
        return accelerator


def apart(a: Any, b: Any) -> float:
    """The largest difference of two models' weights, of which shards are gathered."""
    whole = [[p.full_tensor() if hasattr(p, "full_tensor") else p for p in m.parameters()] for m in (a, b)]
    return max(float((x.detach().double() - y.detach().double()).abs().max()) for x, y in zip(*whole, strict=True))


def sharded(model: Any) -> bool:
    return all(hasattr(p, "full_tensor") for p in model.parameters())


def loop(kind: str, k: int, folder: Path, clip: float = 0.0, optimizer: Any = sgd) -> list[Any]:
    ran, twin = Loop(kind, loops.net(), k, clip=clip, optimizer=optimizer).train(), loops.net()
    loops.by_hand(kind, twin, k, clip=clip, optimizer=optimizer, ranks=2, together=True)
    return [apart(ran.model, twin), sharded(ran.model)]


def loop_resumed(kind: str, folder: Path) -> list[Any]:
    whole = Loop(kind, loops.net(), 2)
    whole.train(last=6).save(folder)
    whole.train(first=6)
    again = Loop(kind, loops.net(), 2).load(folder).train(first=6)
    return [apart(whole.model, again.model), sharded(again.model)]


def trainer(kind: str, task: str, k: int, folder: Path, clip: float = 0.0) -> list[Any]:
    model, twin = hf.twins(hf.Tiny if task == "classes" else hf.llama)
    data = hf.classes() if task == "classes" else hf.texts()
    trained = hf.trained(kind, folder, model, data, k, max_grad_norm=clip, of=Sharded)
    hf.by_hand(kind, twin, data, k, clip=clip, ranks=2, together=True)
    return [apart(trained.model, twin), sharded(trained.engine.model)]


def trainer_resumed(kind: str, folder: Path) -> list[Any]:
    whole = hf.trained(kind, folder, hf.Tiny(), hf.classes(), 2, of=Sharded, **SAVED)
    start = str(folder / "checkpoint-3")
    again = hf.trained(kind, folder, hf.Tiny(), hf.classes(), 2, of=Sharded, resume=start, **SAVED)
    return [apart(whole.model, again.model), sharded(again.model)]


KINDS = ("sam", "sampa", "looksam", "msam")
CASES: dict[str, Callable[[Path], Any]] = {
    **{f"loop {kind} k={k}": partial(loop, kind, k) for kind in KINDS for k in (1, 2)},
    "loop clip": partial(loop, "looksam", 2, clip=0.05),
    "loop adamw": partial(loop, "sampa", 2, optimizer=adamw),
    **{f"loop resume {kind}": partial(loop_resumed, kind) for kind in KINDS},
    **{
        f"trainer {kind} {task} k={k}": partial(trainer, kind, task, k)
        for kind in KINDS
        for task, k in (("classes", 1), ("classes", 2), ("texts", 2))
    },
    "trainer clip": partial(trainer, "looksam", "classes", 2, clip=0.05),
    **{f"trainer resume {kind}": partial(trainer_resumed, kind) for kind in KINDS},
}

if __name__ == "__main__":
    launch.run(CASES)
