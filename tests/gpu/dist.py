"""Section dist: on one rank, and on two GPUs if there are two, wrappers and meshes train as one process does."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conformance import TEXTS, WAITING
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from gpu.checks import NO_GPU, Check, described
from gpu.syncs import waiting_is_an_error
from gpu.training import Net, Training, difference, here, there_are_gpus

STEPS, WATCHED = 6, 3  # steps, and those of them in which waiting is an error
MOST = 1e-8
KINDS = ("DDP", "DDP with bucket views", "fully_shard", "probe mesh", "replicate mesh")
TWO = [(key, kind) for key in ("sam", "sampa", "async-sam", "looksam") for kind in KINDS]


def checks() -> Iterator[Check]:
    """Every method on one rank in every way; on one rank and a GPU without waiting; some methods on two ranks."""
    backend = backend_of(here())
    same = f"on one rank of {backend} the weights are those without ranks in float64, up to {MOST:g}"
    ahead = f"on one rank of {backend} no backward waits for the GPU, from step {STEPS - WATCHED} on"
    both = f"on two ranks of {backend} with the same batches the weights are those of one, up to {MOST:g}"
    with tempfile.TemporaryDirectory() as folder, group(0, 1, Path(folder) / "one", here()):
        for kind in KINDS:
            for text in TEXTS.values():
                yield Check(f"{text}, {kind}", partial(_difference, text, kind, here()), same, MOST)
        for kind in KINDS:
            for text in TEXTS.values():
                if text not in WAITING:
                    measure = partial(_without_waiting, text, kind)
                    yield Check(f"{text}, {kind}, ahead", measure, ahead, missing="" if there_are_gpus() else NO_GPU)
    gpus = torch.cuda.device_count()
    missing = "" if gpus > 1 else f"this machine has {gpus} GPUs, and NCCL takes one for every rank"
    for key, kind in TWO:
        yield Check(f"{key}, {kind}, two ranks", partial(_of_two, key, kind), both, MOST, missing=missing)


def backend_of(device: torch.device) -> str:
    return "nccl" if device.type == "cuda" else "gloo"


@contextmanager
def group(rank: int, ranks: int, meeting: Path, device: torch.device) -> Iterator[None]:
    """The process group of some ranks, which meet at a file; it is the default group inside."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend_of(device),
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=ranks,
        device_id=device if on_gpu else None,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def _training(text: str, kind: str, device: torch.device, **options: Any) -> Training:
    """A training on all ranks of the default group."""
    shape = (dist.get_world_size(),)
    wraps: dict[str, Callable[[Net], nn.Module]] = {
        "DDP": DistributedDataParallel,
        "DDP with bucket views": partial(DistributedDataParallel, gradient_as_bucket_view=True),
        "fully_shard": lambda net: fully_shard(net, mesh=init_device_mesh(device.type, shape)),
    }
    if kind in wraps:
        return Training(text, device=device, wrap=wraps[kind], **options)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=(kind.removesuffix(" mesh"),))
    return Training(text, device=device, mesh=mesh, **options)


def _difference(text: str, kind: str, device: torch.device) -> float:
    found = _training(text, kind, device).run(STEPS)
    return difference(found, Training(text, device=device).run(STEPS))


def _without_waiting(text: str, kind: str) -> None:
    training = _training(text, kind, here(), dtype=torch.float32).run(STEPS - WATCHED)
    training.run(WATCHED, start=STEPS - WATCHED, around=waiting_is_an_error)


def _of_two(text: str, kind: str) -> float:
    found = on_ranks(2)[f"{text}, {kind}"]
    if isinstance(found, str):
        raise AssertionError(found)
    return found


@cache
def on_ranks(ranks: int) -> dict[str, float | str]:
    """The largest difference over all ranks for every case, or what went wrong on one of them."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, args=(ranks, folder), nprocs=ranks)
        of_ranks = [torch.load(Path(folder) / str(rank), weights_only=True) for rank in range(ranks)]
    return {case: worst([found[case] for found in of_ranks]) for case in of_ranks[0]}


def worst(found: Sequence[float | str]) -> float | str:
    """The first text, which is an error; else the largest number, or NaN if there is one."""
    errors = [value for value in found if isinstance(value, str)]
    return errors[0] if errors else float(torch.tensor(found).max())


def _rank(rank: int, ranks: int, folder: str) -> None:
    """Train every case on one rank and write its differences to a file."""
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if there_are_gpus() else torch.device("cpu")
    found: dict[str, float | str] = {}
    with group(rank, ranks, Path(folder) / "meeting", device):
        for key, kind in TWO:
            try:
                found[f"{key}, {kind}"] = _difference(TEXTS[key], kind, device)
            except Exception as error:
                found[f"{key}, {kind}"] = f"rank {rank}: {described(error)}"
        dist.barrier()
    torch.save(found, Path(folder) / str(rank))
