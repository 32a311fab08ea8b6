"""Starting on many ranks: the mesh from a text, checks, and what all ranks must decide together.

The same program runs on one device without ``torchrun``: then there is no mesh, and nothing here communicates.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import itertools
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
        text: Such as ``probe=2,data=4``.

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
    """This process's number among those that ``torchrun`` has started, and how many there are: 0 and 1 without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return (int(os.environ.get("RANK", "0")) if size > 1 else 0), size


def place(device: str | torch.device) -> torch.device:
    """The device of that name, which becomes the current one; on several ranks each has its own GPU.

    Args:
        device: ``cpu``, ``cuda``, or ``auto`` for a GPU where there is one.

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
    if chosen.type == "cuda" and chosen.index is not None:  # without a number it is the current one already
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
    """The value of rank 0, on all ranks of the process group; the caller's own value where there is no group."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


@dataclass(frozen=True)
class World:
    """This process among all of a training.

    Attributes:
        rank: Its number, from 0.
        size: How many there are.
        device: Where this one computes.
        mesh: The mesh of all; None on a single one.
        sizes: The mesh's dimensions.
    """

    rank: int
    size: int
    device: torch.device
    mesh: Any
    sizes: Mapping[str, int]

    @property
    def first(self) -> bool:
        """Whether this rank prints and writes."""
        return self.rank == 0

    def along(self, *names: str) -> Any:
        """The part of the mesh along these dimensions, as far as it has them; None where it has none."""
        held = tuple(name for name in names if name in self.sizes)
        if self.mesh is None or not held:
            return None
        return self.mesh if held == tuple(self.sizes) else self.mesh[held if len(held) > 1 else held[0]]

    @property
    def share(self) -> tuple[int, int]:
        """Which part of every batch is this rank's, and into how many parts it is cut."""
        number, count = 0, 1
        for name in ("replicate", "data"):
            if self.mesh is not None and name in self.sizes:
                number = number * self.sizes[name] + self.mesh[name].get_local_rank()
                count *= self.sizes[name]
        return number, count

    def agree(self, what: Mapping[str, Any]) -> None:
        """Refuse to go on if ranks differ in one of these values.

        Raises:
            RankError: They differ; on all ranks.
        """
        if self.size > 1:
            collectives.agree(what, [_everyone()])

    def broadcast(self, value: Any) -> Any:
        """The value that rank 0 has."""
        return broadcast(value)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Go on when all ranks are here."""
        if self.size > 1:
            dist.barrier()


def job() -> str | None:
    """A name for what torchrun has started, the same after every restart of its ranks; None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"none {os.getppid()}" if name == "none" else name  # "none" is what all have who give no --rdzv-id


_JOINED = itertools.count()  # how often this process has joined the others


@contextmanager
def world(mesh: str | None = None, device: str = "auto", *, patience: float = PATIENCE) -> Iterator[World]:
    """Join the ranks that ``torchrun`` has started; on its own, a process is the only one.

    Args:
        mesh: Such as ``probe=2,data=2``. None divides every batch over all ranks. A single process computes the same
            without a mesh, but for what sees a rank's share of a batch alone.
        device: ``cpu``, ``cuda``, or ``auto`` for a GPU where there is one.
        patience: Seconds that a rank waits for another one before it gives up.

    Yields:
        This process among all.

    Raises:
        ArgumentError: The mesh does not fit the number of ranks.
    """
    _, size = ranks()
    sizes = parse(mesh) if mesh else {}
    chosen = place(device)
    if size == 1:
        yield World(0, 1, chosen, None, {})
        return
    sizes = sizes or {"data": size}
    count = 1
    for dimension in sizes.values():
        count *= dimension
    if count != size:
        raise ArgumentError(
            f"mesh must have as many places as there are ranks, but {mesh} has {count} and torchrun started {size}; "
            f"start torchrun --nproc-per-node {count}, or choose another mesh"
        )
    begun = not dist.is_initialized()
    if begun:
        _join("nccl" if chosen.type == "cuda" else "gloo", timedelta(seconds=patience))
    try:
        from torch.distributed.device_mesh import init_device_mesh

        whole = init_device_mesh(chosen.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
        yield World(dist.get_rank(), size, chosen, whole, sizes)
        # A rank that leaves while a thread of gloo still holds a tensor of another collective would be aborted.
        dist.barrier()
    finally:
        if begun:
            dist.destroy_process_group()


def _join(backend: str, patience: timedelta) -> None:
    """Make the process group of all ranks of this attempt.

    torchrun keeps one store over all its restarts and all runs of a study. Without a prefix for each attempt and each
    run, a rank could read where a peer was listening before it was killed, or in the run before. And a rank that waits
    for others in C++ hears no Python handler: torchrun would wait half a minute for it to end, so until there is a
    group, SIGTERM ends it at once.

    The threads of a process group must end before the interpreter does: a thread that asks for the GIL while the
    interpreter is finalized aborts the process. Reference cycles keep the groups of earlier runs, so cycles are
    collected here and at exit. And ``torch._dynamo``, which the first optimizer loads, keeps the group that it finds
    for good, so it is loaded before there is one.
    """
    importlib.import_module("torch._dynamo")
    joined = next(_JOINED)
    if joined == 0:
        atexit.register(gc.collect)
    gc.collect()
    alone = threading.current_thread() is not threading.main_thread()
    handler = None if alone else signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=patience))  # type: ignore[attr-defined]
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"lowland/attempt-{attempt}/{joined}", store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def assert_replicas_equal(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Check that parameters and buffers have the same bits on all ranks; cheap enough for every hundredth step.

    Args:
        model: The model, wrapped or not.
        group: Ranks that must hold the same; all ranks by default. With ``fully_shard`` give the groups along the
            other dimensions of the mesh, such as ``mesh["probe"].get_group()``: there, local shards are compared.

    Raises:
        RankError: A tensor differs, by name and rank; on all ranks.
        UsageError: Sharded parameters, and no group.
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
