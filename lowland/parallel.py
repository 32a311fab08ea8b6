"""Starts a training on several ranks: the process group, the mesh from a text, and checks that ranks agree.

Without ``torchrun`` the same program runs on one device: then there is no mesh and no communication.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import itertools
import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lowland.core import shards
from lowland.core.errors import ArgumentError, UsageError
from lowland.executors.mesh import collectives

DIMENSIONS = {
    "probe": "probes of one step are divided over its groups",
    "replicate": "the engine averages over it, and each group of ranks perturbs for itself",
    "data": "DistributedDataParallel or fully_shard average over it",
}
PATIENCE = 300.0  # seconds that a collective waits for a rank


def parse(text: str) -> dict[str, int]:
    """The sizes of a mesh's dimensions, outermost first.

    Args:
        text: The dimensions with their sizes, such as ``probe=2,data=4``.

    Raises:
        ArgumentError: The text is malformed.

    Example:
        >>> parse("probe=2,data=4")
        {'probe': 2, 'data': 4}
    """
    sizes: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, size = (piece.strip() for piece in part.partition("="))
        if name not in DIMENSIONS or name in sizes or not size.isdigit() or int(size) < 1:
            raise ArgumentError(
                f"mesh must be dimensions with their sizes, each once, from {', '.join(DIMENSIONS)}, but has {part!r}; "
                "write probe=2,data=4"
            )
        sizes[name] = int(size)
    return {name: sizes[name] for name in DIMENSIONS if name in sizes}


def ranks() -> tuple[int, int]:
    """This process's rank and the number of ranks that ``torchrun`` has started; 0 and 1 without ``torchrun``."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return (int(os.environ.get("RANK", "0")) if size > 1 else 0), size


def place(device: str | torch.device) -> torch.device:
    """The device of this name; a GPU with an index becomes the current device. Each of several ranks gets its own GPU.

    Args:
        device: ``cpu``, ``cuda``, or ``auto`` for a GPU if there is one.

    Raises:
        ArgumentError: There is no such device, or all ranks would take the same GPU.
    """
    device, several = str(device), ranks()[1] > 1
    here = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if several else "cuda"
    names = {"cuda": here, "auto": here if torch.cuda.is_available() else "cpu"}
    try:
        chosen = torch.device(names.get(device, device))
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ArgumentError(f"device must be cpu, cuda or auto, but is {device!r}; choose one of these")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ArgumentError(f"device must be one that is here, but {device!r} is not; choose cpu or auto")
    if chosen.type == "cuda" and several and device not in names:
        raise ArgumentError(f"device must be cuda or auto where each rank takes a GPU, but is {device!r}; choose cuda")
    if chosen.type == "cuda":
        _check_gpu(chosen, several)
    if chosen.type == "cuda" and chosen.index is not None:  # without an index it is the current device
        torch.cuda.set_device(chosen)
    return chosen


def _check_gpu(chosen: torch.device, several: bool) -> None:
    """Refuse a GPU that this process does not see, or that it would share with the other ranks of its host."""
    if several and "LOCAL_RANK" not in os.environ:
        raise ArgumentError(
            "LOCAL_RANK must say which GPU of its host a rank takes, but is not set, so that all ranks would take the "
            "first; start the ranks with torchrun, or set LOCAL_RANK for each"
        )
    count = torch.cuda.device_count()
    if chosen.index is not None and chosen.index >= count:
        remedy = "start as many ranks on a host as it has GPUs, and let every rank see all of them"
        raise ArgumentError(
            f"device must be one that is here, but {chosen} is not: this process sees {count} "
            f"GPU{'' if count == 1 else 's'}; {remedy if several else 'choose another'}"
        )


def broadcast(value: Any) -> Any:
    """Broadcast the value of rank 0 to all ranks; without a process group, return the value."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


@dataclass(frozen=True)
class World:
    """The ranks of a training, as seen by one of them.

    Attributes:
        rank: The rank of this process, from 0.
        size: The number of ranks.
        device: The device of this rank.
        mesh: The mesh of all ranks; None for a single process.
        sizes: The sizes of the mesh's dimensions, by name.
    """

    rank: int
    size: int
    device: torch.device
    mesh: Any
    sizes: Mapping[str, int]

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the rank that prints and writes files."""
        return self.rank == 0

    def along(self, *names: str) -> Any:
        """The submesh of those of these dimensions that the mesh has; None if it has none of them."""
        present = tuple(name for name in names if name in self.sizes)
        if self.mesh is None or not present:
            return None
        return self.mesh if present == tuple(self.sizes) else self.mesh[present if len(present) > 1 else present[0]]

    @property
    def batch_part(self) -> tuple[int, int]:
        """The part of every batch that this rank gets: its index and the number of parts."""
        index, count = 0, 1
        for name in ("replicate", "data"):
            if self.mesh is not None and name in self.sizes:
                index = index * self.sizes[name] + self.mesh[name].get_local_rank()
                count *= self.sizes[name]
        return index, count

    def agree(self, what: Mapping[str, Any]) -> None:
        """Check that these values are equal on all ranks.

        Raises:
            RankError: A value differs between ranks; raised on all ranks.
        """
        if self.size > 1:
            collectives.agree(what, [_everyone()])

    def broadcast(self, value: Any) -> Any:
        """Broadcast the value of rank 0 to all ranks."""
        return broadcast(value)

    def gather(self, value: Any) -> list[Any]:
        """Gather the values of all ranks, in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until all ranks have called this (a barrier)."""
        if self.size > 1:
            dist.barrier()


def job() -> str | None:
    """The name of the torchrun job, which stays the same when torchrun restarts its ranks; None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"none {os.getppid()}" if name == "none" else name  # all jobs without --rdzv-id have the name "none"


_JOINED = itertools.count()  # the number of process groups that this process has joined


@contextmanager
def world(mesh: str | None = None, device: str = "auto", *, patience: float = PATIENCE) -> Iterator[World]:
    """Join the process group of the ranks that ``torchrun`` has started, and leave it at the end.

    Args:
        mesh: The mesh, such as ``probe=2,data=2``; None divides every batch over all ranks. A single process ignores
            it, and computes the same except for computations that see one rank's part of a batch at a time.
        device: ``cpu``, ``cuda``, or ``auto`` for a GPU if there is one.
        patience: The timeout of collectives, in seconds.

    Yields:
        The ranks; without ``torchrun``, this process alone.

    Raises:
        ArgumentError: The sizes of the mesh do not multiply to the number of ranks.
    """
    _, size = ranks()
    sizes = (parse(mesh) if mesh else {}) or {"data": size}
    chosen = place(device)
    if size == 1:
        yield World(0, 1, chosen, None, {})
        return
    count = math.prod(sizes.values())
    if count != size:
        raise ArgumentError(
            f"mesh must have as many places as there are ranks, but {mesh} has {count} and torchrun started {size}; "
            f"start torchrun --nproc-per-node {count}, or choose another mesh"
        )
    begun = not dist.is_initialized()
    if begun:
        _join(chosen, timedelta(seconds=patience))
    completed = False
    try:
        from torch.distributed.device_mesh import init_device_mesh

        device_mesh = init_device_mesh(chosen.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
        yield World(dist.get_rank(), size, chosen, device_mesh, sizes)
        # Without a barrier, a rank could exit while a gloo thread still uses a tensor, which aborts the process.
        dist.barrier()
        completed = True
    finally:
        if begun:
            collectives.leave(abort=not completed and chosen.type == "cuda")


def _join(device: torch.device, patience: timedelta) -> None:
    """Make the process group of all ranks.

    torchrun keeps one store over all its restarts and over all runs of a study. Without a prefix for each restart and
    each run, a rank could read the address of a peer that was killed, or that belongs to the previous run. A rank that
    waits in C++ for other ranks does not run Python signal handlers, and torchrun would wait half a minute for it to
    end. So SIGTERM has its default handler, which ends the process at once, until the group is made.

    The threads of a process group must end before the interpreter is finalized, because a thread that then requests
    the GIL aborts the process. Reference cycles can keep the groups of earlier runs alive, so they are collected here
    and at exit. ``torch._dynamo``, which the first optimizer imports, keeps a reference to an existing process group
    forever, so it is imported before there is one.
    """
    importlib.import_module("torch._dynamo")
    if (joined := next(_JOINED)) == 0:
        atexit.register(gc.collect)
    gc.collect()
    alone = threading.current_thread() is not threading.main_thread()
    handler = None if alone else signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=patience))  # type: ignore[attr-defined]
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"lowland/attempt-{attempt}/{joined}", store)  # type: ignore[attr-defined]
        gpu: dict[str, Any] = {"device_id": device} if device.type == "cuda" else {}  # NCCL need not guess it
        backend = "nccl" if gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience, **gpu)
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def assert_replicas_equal(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Check that parameters and buffers have the same bits on all ranks; cheap enough for every hundredth step.

    Args:
        model: The model, wrapped or not.
        group: The ranks whose tensors must be equal; all ranks by default. With ``fully_shard``, pass the group of
            another dimension of the mesh, such as ``mesh["probe"].get_group()``: its ranks have equal shards.

    Raises:
        RankError: A tensor differs; the message names tensor and rank. Raised on all ranks.
        UsageError: Parameters are sharded and no group is given.
    """
    tensors = {n: t for n, t in [*model.named_parameters(), *model.named_buffers()] if t.numel() > 0}
    if group is None and not shards.ordinary(list(tensors.values())):
        raise UsageError(
            "sharded parameters differ between the ranks of a shard group, so a group is needed; pass one along "
            'another dimension: assert_replicas_equal(model, mesh["probe"].get_group())'
        )
    if dist.is_initialized():
        collectives.same_bits(tensors, group or _everyone())


def _everyone() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None
    return group
